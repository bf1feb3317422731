"""A model and data hub on this machine: the part of the HTTP API that the hub's libraries use.

hub.add("someone/model", folder)                      # a commit on `main`; a mapping works as well
hub.add("someone/rows", {"train.jsonl": b"..."}, kind="dataset", private=True)
hub.files("someone/model", "v1")["config.json"]       # what a branch, tag or commit holds
hub.breaks.append(Break("model.safetensors", after=100))

The libraries read where the hub is when they are imported, so `claim` runs first of all in
`conftest.py`; no test can reach another hub. The fixture `hub` (there) serves an empty one, with an
empty cache and no token.
"""

import atexit
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_api import Answer, Call, answer
from hub_repos import Break, Hub, Request

__all__ = ["Break", "Hub", "claim", "serve_hub"]


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        hub = self.server.hub
        parts = urlsplit(self.path)
        body = self._body()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.requests.append(Request(self.command, self.path, hub.tokens.get(token or "")))
        broken = self._broken()
        if broken is not None and broken.wait is not None:
            broken.wait.wait(timeout=60)
        elif broken is not None and broken.status is None and broken.after is None:
            self.close_connection = True
            return

        def call_of(groups: Mapping[str, str]) -> Call:
            return Call(hub, self.command, groups, parse_qs(parts.query), body, token)

        found = answer(call_of, self.command, parts.path)
        if broken is not None and broken.status is not None:
            found = Answer(b'{"error": "out of order"}', broken.status)
        self._send(found, broken.after if broken is not None else None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

    def _broken(self) -> Break | None:
        hub = self.server.hub
        with hub.lock:
            for broken in hub.breaks:
                wanted = broken.method in ("", self.command) and broken.times > 0
                if wanted and re.search(broken.path, self.path):
                    if broken.skip:
                        broken.skip -= 1
                        continue
                    broken.times -= 1
                    return broken
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, found: Answer, cut_after: int | None) -> None:
        content, status, headers = found.body, found.status, dict(found.headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and status == 200 and "Accept-Ranges" in headers:
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut_after is not None:
            content, self.close_connection = content[:cut_after], True
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        """Take a port; nothing listens yet."""
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()
        self.hub = hub
        hub.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


@cache
def _server() -> _Server:
    server = _Server(Hub())
    atexit.register(server.server_close)
    return server


@cache
def _listening() -> _Server:
    server = _server()
    server.server_activate()
    atexit.register(server.shutdown)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def claim() -> None:
    """Point the hub's libraries at this process's hub; before any of them is imported."""
    assert "huggingface_hub" not in sys.modules
    os.environ["HF_ENDPOINT"] = _server().hub.url
    home = os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="newtune-hub-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS"):
        os.environ[f"HF_HUB_{name}"] = "1"
    os.environ["USE_PARQUET_EXPORT"] = "0"  # of a host name that has to be looked up
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve this process's hub, empty; afterwards whatever waits goes on."""
    hub = _listening().hub
    fresh = Hub()
    for name in ("repos", "tokens", "readers", "read_only", "blobs", "breaks", "requests"):
        setattr(hub, name, getattr(fresh, name))
    try:
        yield hub
    finally:
        for broken in hub.breaks:
            if broken.wait is not None:
                broken.wait.set()
        hub.breaks.clear()
