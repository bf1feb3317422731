"""Files at an address (`https://`, `s3://`, ...), through fsspec: downloaded once into the cache.

Each run asks what the address holds now: a file is kept under its address and the version that its
server tells (an ETag, a checksum, a time), so that a changed file is fetched anew. When the server
cannot be asked, what it held the last time is used, with a notice.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from filelock import FileLock

from newtune.data.sources.files import Found, choose_files
from newtune.errors import DataError, SetupError
from newtune.logs import logger, notice

EXTRAS: Mapping[str, str] = {
    "http": "http",
    "https": "http",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""Protocol → the extra that installs what reads it."""

VERSIONS = (
    "ETag", "etag", "e_tag", "Content-MD5", "content_md5", "md5Hash", "crc32c", "Digest",
    "generation", "VersionId", "blob_id", "oid", "Last-Modified", "LastModified", "last_modified",
    "mtime", "created", "size",
)  # fmt: skip
"""What file systems call that which changes with a file."""


@dataclass(frozen=True)
class Address:
    """Where a file or a folder is."""

    full: str

    @property
    def shown(self) -> str:
        """The address without what may be secret: a query (signatures) and a user."""
        bare = self.full.split("?", 1)[0] if self._is_http else self.full
        return re.sub(r"^(\w+://)[^/@]*@", r"\1", bare)

    @property
    def protocol(self) -> str:
        """What stands before `://`."""
        return self.full.split("://", 1)[0].lower()

    @property
    def _is_http(self) -> bool:
        return self.protocol in {"http", "https"}

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for several files; a `?` opens the query of a web address."""
        return "*" in self.full if self._is_http else has_magic(self.full)

    @property
    def file_name(self) -> str:
        """The last part, as the name of a file here."""
        path = urlsplit(self.full).path if self._is_http else self.full
        return re.sub(r"[^\w.-]", "_", unquote(path).rstrip("/").rsplit("/", 1)[-1])[-100:]


def is_address(path: str) -> bool:
    """Tell an address from a path or a hub id."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path) is not None


def remote_files(path: str, split: str, kind: str | None, cache: Path) -> list[Found]:
    """Return the files at an address, a file, a pattern or a folder; each is here then.

    Raises:
        DataError: there is no such file, access is refused, or the download broke off.
        SetupError: the package for this protocol is missing; the message installs it.
    """
    address, folder = Address(path), cache / "remote"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / f"{_digest(path, split, str(kind))}.json"
    system = _file_system(address)
    try:
        files = _list(system, address, split, kind)
    except Exception as error:  # noqa: BLE001 (each protocol's package raises errors of its own)
        return _without_server(address, error, record)
    found = [_download(system, file, folder) for file in files]
    entries = [{"path": str(file.path), "name": file.name} for file in found]
    record.write_text(json.dumps(entries), encoding="utf-8")
    return found


@dataclass(frozen=True)
class _RemoteFile:
    address: Address
    path: str
    """As its file system calls it."""
    info: Mapping[str, Any]


def _file_system(address: Address) -> Any:
    try:
        return fsspec.filesystem(address.protocol, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(address.protocol)
        remedy = f"pip install 'newtune[{extra}]'" if extra else str(error)
        raise SetupError(
            f"{address.shown}: reading `{address.protocol}://` needs a package that is not "
            f"installed. Install it: {remedy}"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{address.shown}: `{address.protocol}://` is not known. Use one of "
            f"{', '.join(f'{name}://' for name in [*EXTRAS, 'hf'])}."
        ) from error


def _list(system: Any, address: Address, split: str, kind: str | None) -> list[_RemoteFile]:
    """Ask what is there now."""
    path = system._strip_protocol(address.full)
    if address.is_pattern:
        paths = sorted(system.glob(path))
        if not paths:
            raise DataError(f"{address.shown}: no file matches this pattern.")
        return [_look_up(system, address, name) for name in paths]
    if not address.full.endswith("/"):
        info = system.info(path)
        if info["type"] != "directory":
            return [_RemoteFile(address, path, info)]
    root = str(path).rstrip("/") + "/"
    names = {name.removeprefix(root): name for name in system.find(path)}
    chosen = choose_files(list(names), split, kind, address.shown)
    return [_look_up(system, address, names[name]) for name in chosen]


def _look_up(system: Any, parent: Address, path: str) -> _RemoteFile:
    full = path if is_address(path) else f"{parent.protocol}://{path.lstrip('/')}"
    return _RemoteFile(Address(full), path, system.info(path))


def _without_server(address: Address, error: Exception, record: Path) -> list[Found]:
    """Return what the address held the last time, if it is still here and only the way is cut."""
    if isinstance(error, DataError):
        raise error
    root = error.__cause__ if isinstance(error.__cause__, Exception) else error
    status = getattr(root, "status", None)
    if status in {401, 403} or isinstance(root, PermissionError):
        raise DataError(
            f"{address.shown}: access is refused ({_reason(root, address)}). Give this machine the "
            "right to read it: log in, or set the credentials that its storage expects."
        ) from error
    if status in {404, 410} or isinstance(root, FileNotFoundError):
        raise DataError(
            f"{address.shown}: there is no such file ({_reason(root, address)}). Check the address."
        ) from error
    if record.is_file():
        entries = json.loads(record.read_text(encoding="utf-8"))
        found = [Found(Path(entry["path"]), entry["name"]) for entry in entries]
        if all(file.path.is_file() for file in found):
            notice(
                f"{address.shown}: cannot be reached ({_reason(root, address)}); using the copy "
                "that was downloaded before"
            )
            return found
    raise DataError(
        f"{address.shown}: cannot be reached, and was not downloaded before: "
        f"{_reason(root, address)}. Check the network, or give a local `path`."
    ) from error


def _reason(error: Exception, address: Address) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP status {status}"
    text = str(error).strip().split("\n")[0].replace(address.full, address.shown).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _download(system: Any, file: _RemoteFile, folder: Path) -> Found:
    """Return the file's copy here, fetched if this version of it was not."""
    address, info = file.address, file.info
    version = {key: str(info[key]) for key in VERSIONS if info.get(key) is not None}
    place = folder / _digest(address.full, json.dumps(version, sort_keys=True))
    copy = place / (address.file_name or "data")
    with FileLock(folder / f".{place.name}.lock"):
        if not copy.is_file():
            _fetch(system, file, copy)
    return Found(copy, address.shown)


def _fetch(system: Any, file: _RemoteFile, copy: Path) -> None:
    """Write aside, look at it, rename."""
    address, size = file.address, file.info.get("size")
    aside = copy.parent.with_name(f"{copy.parent.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    logger.info("Downloading %s%s", address.shown, f" ({size:,} bytes)" if size else "")
    try:
        _get(system, file, aside / copy.name)
        _refuse_web_page(aside / copy.name, file)
        got = (aside / copy.name).stat().st_size
        if size is not None and got != size:
            raise DataError(
                f"{address.shown}: the download is not whole: {got:,} of {size:,} bytes. Try again."
            )
        aside.rename(copy.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _get(system: Any, file: _RemoteFile, path: Path) -> None:
    try:
        system.get_file(file.path, str(path))
    except Exception as error:  # each protocol's package raises errors of its own
        raise DataError(
            f"{file.address.shown}: the download broke off: {_reason(error, file.address)}. "
            "Try again."
        ) from error


def _refuse_web_page(path: Path, file: _RemoteFile) -> None:
    with path.open("rb") as opened:
        start = opened.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{file.address.shown}: the address gives a web page, not data. Use the link of the "
            "file itself (`raw` or `resolve` instead of `blob` on most sites); a page that asks "
            "to log in looks the same."
        )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
