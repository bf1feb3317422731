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
import base64
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["model", "dataset"]
Files = Mapping[str, bytes]

LARGE_FILES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".arrow", ".gguf")
"""What goes through LFS, as a new repository's .gitattributes has it."""


@dataclass(frozen=True)
class Commit:
    """The files of a repository after one change."""

    id: str
    files: Files
    title: str


@dataclass
class Repo:
    """A repository: its commits, oldest first, and its branches and tags."""

    id: str
    kind: Kind
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, title: str, branch: str = "main") -> Commit:
        """Add a commit whose files are exactly these."""
        count = str(len(self.commits))
        made = Commit(hashlib.sha1(f"{self.id} {count}".encode()).hexdigest(), dict(files), title)
        self.commits.append(made)
        self.branches[branch] = made.id
        return made

    def at(self, revision: str) -> Commit | None:
        """Return what a branch, tag or (whole) commit id names."""
        wanted = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.id == wanted), None)


@dataclass
class Break:
    """What goes wrong with requests whose path matches, `times` times, from the `skip`ped ones on.

    With `after`, the connection ends after so many bytes of the content; with `status`, that is the
    answer; with neither, there is no answer at all.
    """

    path: str
    """Regular expression, searched for in the path."""
    after: int | None = None
    status: int | None = None
    times: int = 1
    method: str = ""
    skip: int = 0
    wait: threading.Event | None = None
    """When given, nothing goes wrong: the request waits for it."""


@dataclass(frozen=True)
class Request:
    """What was asked, and by whom."""

    method: str
    path: str
    user: str | None


@dataclass
class Hub:
    """Repositories, who may see them, and what was asked for."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Token → user name. A user owns what begins with the name."""
    readers: dict[str, set[str]] = field(default_factory=dict)
    """Repository → users besides the owner who were given access."""
    read_only: set[str] = field(default_factory=set)
    """Tokens that may not write."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    breaks: list[Break] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(
        self,
        id: str,
        files: Files | Path | None = None,
        *,
        kind: Kind = "model",
        branch: str = "main",
        tag: str | None = None,
        private: bool = False,
        gated: bool = False,
    ) -> Repo:
        """Make a repository, or a further commit whose files are exactly these."""
        content = _read(files) if isinstance(files, Path) else files or {}
        repo = self.repos.setdefault((kind, id), Repo(id, kind))
        repo.private, repo.gated = private, gated
        if not repo.commits and branch != "main":
            repo.commit({}, "initial commit")
        made = repo.commit(content, "add files", branch)
        if tag:
            repo.tags[tag] = made.id
        self._keep(content)
        return repo

    def add_user(self, name: str, token: str, *, read_only: bool = False) -> str:
        """Let a token in; returns it."""
        self.tokens[token] = name
        if read_only:
            self.read_only.add(token)
        return token

    def files(self, id: str, revision: str = "main", *, kind: Kind = "model") -> Files:
        """Return what a revision holds."""
        commit = self.repos[kind, id].at(revision)
        assert commit is not None, f"{id} has no revision {revision}"
        return commit.files

    def titles(self, id: str, *, kind: Kind = "model") -> list[str]:
        """Return the titles of the commits, oldest first."""
        return [commit.title for commit in self.repos[kind, id].commits]

    def asked(self, pattern: str, method: str = "") -> list[Request]:
        """Return the requests whose path matches."""
        return [
            request
            for request in self.requests
            if re.search(pattern, request.path) and method in ("", request.method)
        ]

    def _keep(self, files: Files) -> None:
        large = [content for name, content in files.items() if is_large(name)]
        self.blobs |= {_sha256(content): content for content in large}


class HubError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: Any) -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.body = {"error": message or code, **more}
        super().__init__(message)


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request, taken apart."""

    hub: Hub
    method: str
    groups: Mapping[str, str]
    query: Mapping[str, list[str]]
    body: bytes
    token: str | None

    @property
    def user(self) -> str | None:
        return self.hub.tokens.get(self.token or "")

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def kind(self) -> Kind:
        return "dataset" if (self.groups.get("kind") or "").startswith("datasets") else "model"

    def repo(self, *, content: bool = False) -> Repo:
        """Return the repository that is named, if this user may see it (or its content)."""
        id = self.groups["id"]
        found = self.hub.repos.get((self.kind, id))
        member = self.user is not None and (
            id.startswith(f"{self.user}/") or self.user in self.hub.readers.get(id, ())
        )
        if self.token and self.user is None:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        if found is None or (found.private and not member):
            raise HubError(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if content and found.gated and not member:
            said = f"Access to {self.kind} {id} is restricted."
            raise HubError(403 if self.user else 401, "GatedRepo", said)
        return found

    def commit(self, repo: Repo) -> Commit:
        """Return the commit that is named."""
        found = repo.at(unquote(self.groups.get("revision") or "main"))
        if found is None:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        return found

    def require_writer(self, id: str) -> None:
        """Refuse whoever does not own the name."""
        if self.user is None:
            raise HubError(401, "", "Invalid username or password.")
        if not id.startswith(f"{self.user}/") or self.token in self.hub.read_only:
            raise HubError(403, "", f"You don't have the rights to create or change {id}")


# --- reading


def whoami(call: Call) -> Answer:
    if call.user is None:
        raise HubError(401, "", "Invalid credentials in Authorization header")
    role = "read" if call.token in call.hub.read_only else "write"
    access = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return _json({"type": "user", "name": call.user, "orgs": [], "auth": access})


def list_repos(call: Call) -> Answer:
    wanted = call.query.get("author", [""])[0]
    search = call.query.get("search", [""])[0].lower()
    found = [
        {"id": repo.id, "private": False, "tags": []}
        for repo in call.hub.repos.values()
        if repo.kind == call.kind and not repo.private
        if repo.id.startswith(f"{wanted}/" if wanted else "") and search in repo.id.lower()
    ]
    return _json(found[: int(call.query.get("limit", ["100"])[0])])


def info(call: Call) -> Answer:
    repo = call.repo()
    commit = call.commit(repo)
    return _json(
        {
            "id": repo.id,
            "sha": commit.id,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "tags": [],
            "lastModified": _date(),
            "siblings": [{"rfilename": name} for name in sorted(commit.files)],
        }
    )


def tree(call: Call) -> Answer:
    repo = call.repo(content=True)
    commit = call.commit(repo)
    folder = unquote(call.groups.get("path") or "").strip("/")
    prefix = f"{folder}/" if folder else ""
    names = [name for name in sorted(commit.files) if name.startswith(prefix)]
    if folder and not names:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist on {commit.id}")
    recursive = _is_set(call.query, "recursive")
    folders = {name[: match.start()] for name in names for match in re.finditer("/", name)}
    inside = [name for name in folders if name.startswith(prefix)]
    entries = [_folder_entry(commit, name) for name in sorted(inside)]
    entries += [_file_entry(commit, name) for name in names]
    if not recursive:
        entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
    return _json([_expanded(entry, commit, call) for entry in entries])


def paths_info(call: Call) -> Answer:
    commit = call.commit(call.repo(content=True))
    form = call.json if call.body.startswith(b"{") else parse_qs(call.body.decode())
    found = []
    for path in form["paths"]:
        if path in commit.files:
            found.append(_file_entry(commit, path))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            found.append(_folder_entry(commit, path))
    return _json([_expanded(entry, commit, call) for entry in found])


def refs(call: Call) -> Answer:
    repo = call.repo()
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in repo.branches.items()
    ]
    tags = [
        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
        for name, commit in repo.tags.items()
    ]
    return _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def commits(call: Call) -> Answer:
    repo = call.repo()
    last = call.commit(repo)
    until = repo.commits[: repo.commits.index(last) + 1]
    return _json(
        [
            {"id": one.id, "title": one.title, "message": "", "authors": [], "date": _date()}
            for one in reversed(until)
        ]
    )


def resolve(call: Call) -> Answer:
    commit = call.commit(call.repo(content=True))
    name = unquote(call.groups["path"])
    known = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if name not in commit.files:
        error = HubError(404, "EntryNotFound", "Entry not found")
        error.headers |= known
        raise error
    content = commit.files[name]
    if not is_large(name):
        return Answer(content, headers={**known, "ETag": f'"{_git_id(content)}"'})
    oid = _sha256(content)
    linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
    store = call.hub.url.replace("127.0.0.1", "localhost")  # another host: no token goes there
    place = f"{store}/lfs/{oid}/{name}"
    return Answer(b"", 302, {**known, **linked, "Location": place})


def download_blob(call: Call) -> Answer:
    oid = call.groups["oid"]
    return Answer(call.hub.blobs[oid], headers={"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


# --- writing


def create_repo(call: Call) -> Answer:
    asked = call.json
    id = f"{asked.get('organization') or call.user}/{asked['name']}"
    call.require_writer(id)
    kind: Kind = "dataset" if asked.get("type") == "dataset" else "model"
    url = f"{call.hub.url}/{'datasets/' if kind == 'dataset' else ''}{id}"
    if (kind, id) in call.hub.repos:
        raise HubError(409, "", "You already created this repo", url=url)
    repo = Repo(id, kind, private=asked.get("private") or asked.get("visibility") == "private")
    lines = [f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_FILES]
    repo.commit({".gitattributes": "".join(lines).encode()}, "initial commit")
    call.hub.repos[kind, id] = repo
    return _json({"url": url, "id": id})


def create_branch(call: Call) -> Answer:
    repo = call.repo()
    call.require_writer(repo.id)
    name = unquote(call.groups["revision"])
    if name in repo.branches:
        raise HubError(409, "", f"Reference already exists: refs/heads/{name}")
    start = repo.at(call.json.get("startingPoint") or "main")
    if start is None:
        raise HubError(404, "RevisionNotFound", "Invalid rev id")
    repo.branches[name] = start.id
    return _json({})


def preupload(call: Call) -> Answer:
    repo = call.repo()
    call.require_writer(repo.id)
    commit = call.commit(repo)
    files = []
    for asked in call.json["files"]:
        name = asked["path"]
        there = commit.files.get(name)
        oid = None if there is None else (_sha256 if is_large(name) else _git_id)(there)
        mode = "lfs" if is_large(name) else "regular"
        files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return _json({"files": files, "commitOid": commit.id})


def lfs_batch(call: Call) -> Answer:
    call.require_writer(call.repo().id)
    objects = []
    for asked in call.json["objects"]:
        entry = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in call.hub.blobs:
            entry["actions"] = {"upload": {"href": f"{call.hub.url}/lfs/{asked['oid']}/new"}}
        objects.append(entry)
    return _json({"transfer": "basic", "objects": objects})


def upload_blob(call: Call) -> Answer:
    if _sha256(call.body) != call.groups["oid"]:
        raise HubError(400, "", "the content is not what its name says")
    call.hub.blobs[call.groups["oid"]] = call.body
    return _json({})


def commit(call: Call) -> Answer:
    repo = call.repo()
    call.require_writer(repo.id)
    branch = unquote(call.groups["revision"])
    if branch not in repo.branches:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    files = dict(call.commit(repo).files)
    title = ""
    for line in call.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        match entry["key"]:
            case "header":
                title = value["summary"]
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = call.hub.blobs[value["oid"]]
            case "deletedFile":
                del files[value["path"]]
            case "deletedFolder":
                inside = value["path"].rstrip("/") + "/"
                files = {name: data for name, data in files.items() if not name.startswith(inside)}
    made = repo.commit(files, title, branch)
    url = f"{call.hub.url}/{repo.id}/commit/{made.id}"
    return _json({"success": True, "commitOid": made.id, "commitUrl": url})


def auth_check(call: Call) -> Answer:
    call.repo(content=True)
    return _json({})


def validate_card(call: Call) -> Answer:
    """Refuse what the hub refuses: a base that is a path."""
    base = re.search(r"^base_model: (.*)$", call.json["content"], re.MULTILINE)
    if base and not re.fullmatch(r'"?[\w.-]+(/[\w.-]+)?"?', base[1]):
        message = f'"base_model" with value {base[1]} is not valid. Use a model id.'
        raise HubError(400, "", message, errors=[{"message": message}], warnings=[])
    return _json({"errors": [], "warnings": []})


_ID = r"(?P<id>[^/]+/[^/]+?)"
_API = rf"/api/(?P<kind>models|datasets)/{_ID}"
ROUTES: tuple[tuple[str, str, Callable[[Call], Answer]], ...] = (
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/validate-yaml", validate_card),
    ("POST", r"/api/repos/create", create_repo),
    ("GET", r"/api/(?P<kind>models|datasets)", list_repos),
    ("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?", info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", paths_info),
    ("GET", rf"{_API}/auth-check", auth_check),
    ("GET", rf"{_API}/refs", refs),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", commits),
    ("POST", rf"{_API}/branch/(?P<revision>[^/]+)", create_branch),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", commit),
    ("POST", rf"/(?P<kind>datasets/)?{_ID}\.git/info/lfs/objects/batch", lfs_batch),
    ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})/.*", download_blob),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/.*", upload_blob),
    ("GET", rf"/(?P<kind>datasets/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
)


# --- the server


def answer(call_of: Callable[[Mapping[str, str]], Call], method: str, path: str) -> Answer:
    """Return what the route of a request says."""
    for wanted, pattern, act in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and wanted == ("GET" if method == "HEAD" else method):
            try:
                call = call_of(match.groupdict())
                with call.hub.lock:
                    return act(call)
            except HubError as error:
                headers = {name: text for name, text in error.headers.items() if text}
                return Answer(json.dumps(error.body).encode(), error.status, headers)
    return Answer(b'{"error": "no such page"}', 404)


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


def is_large(name: str) -> bool:
    """Say whether a file goes through LFS."""
    return name.endswith(LARGE_FILES)


def _read(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _file_entry(commit: Commit, name: str) -> dict[str, Any]:
    content = commit.files[name]
    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_id(content)}
    if is_large(name):
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _folder_entry(commit: Commit, name: str) -> dict[str, Any]:
    oid = hashlib.sha1(f"{commit.id}{name}".encode()).hexdigest()
    return {"type": "directory", "path": name, "size": 0, "oid": oid}


def _expanded(entry: dict[str, Any], commit: Commit, call: Call) -> dict[str, Any]:
    if _is_set(call.query, "expand") or b"expand=" in call.body or b'"expand": true' in call.body:
        return {**entry, "lastCommit": {"id": commit.id, "title": commit.title, "date": _date()}}
    return entry


def _is_set(query: Mapping[str, list[str]], name: str) -> bool:
    return query.get(name, ["false"])[0].lower() in ("true", "1")


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def _date() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
