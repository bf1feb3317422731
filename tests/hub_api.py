"""The pages of the tests' hub: what the hub's libraries ask, and what the real one answers."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_repos import LARGE_FILES, Commit, Hub, Kind, Repo, git_id, is_large, sha256


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
        return Answer(content, headers={**known, "ETag": f'"{git_id(content)}"'})
    oid = sha256(content)
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
        oid = None if there is None else (sha256 if is_large(name) else git_id)(there)
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
    if sha256(call.body) != call.groups["oid"]:
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


def _file_entry(commit: Commit, name: str) -> dict[str, Any]:
    content = commit.files[name]
    entry = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
    if is_large(name):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
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
