"""A web server on this machine that serves what a test puts into it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """Paths and their content; what was asked for is recorded."""

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    """Paths whose content breaks off in the middle."""
    fetched: list[str] = field(default_factory=list)
    url: str = ""


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body):
            path = self.path.split("?")[0]
            status = site.statuses.get(path, 200 if path in site.files else 404)
            content = site.files.get(path, b"") if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if path in site.etags:
                self.send_header("ETag", site.etags[path])
            self.end_headers()
            if body:
                site.fetched.append(self.path)
                self.wfile.write(content[: len(content) // 2] if path in site.cut else content)
                if path in site.cut:
                    self.close_connection = True

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def serve() -> Iterator[Site]:
    """Serve a site until the block ends."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
