"""What the hub of the tests holds: repositories and their commits, users, what is to go wrong."""

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
        self.blobs |= {sha256(content): content for content in large}


def is_large(name: str) -> bool:
    """Say whether a file goes through LFS."""
    return name.endswith(LARGE_FILES)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _read(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
