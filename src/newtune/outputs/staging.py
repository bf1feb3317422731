"""Write results aside and move them into place whole, so that nothing half-written is left."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from newtune.errors import ExportError

READ_BYTES = 1 << 20
WRITING = ".writing-"


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder inside `target`; afterwards it is gone, moved or not.

    What a killed process left of its own is removed first: a lock that the system gives up with
    the process tells it from the folder of one that still writes.

    Raises:
        ExportError: something could not be written (no space, no permission); nothing is left.
    """
    stage = target / f"{WRITING}{uuid.uuid4().hex[:8]}"
    lock = FileLock(_lock_of(stage))
    try:
        target.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        lock.acquire()
        stage.mkdir()
    except OSError as error:
        raise _export_error(target, error) from error
    try:
        yield stage
    except (OSError, SafetensorError) as error:
        raise _export_error(target, error) from error
    finally:
        _remove(stage)
        lock.release()


def _lock_of(stage: Path) -> Path:
    return stage.with_name(f"{stage.name}.lock")


def _remove_abandoned(target: Path) -> None:
    """Remove the folders of processes that are gone, which hold no lock any more."""
    for path in target.glob(f"{WRITING}*"):
        stage = path.with_name(path.name.removesuffix(".lock"))
        lock = FileLock(_lock_of(stage))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _remove(stage)
        lock.release()


def _remove(stage: Path) -> None:
    """Remove a folder and the lock that is held on it."""
    shutil.rmtree(stage, ignore_errors=True)
    _lock_of(stage).unlink(missing_ok=True)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to begin writing what will not fit.

    Raises:
        ExportError: the file system of `folder` has fewer free bytes.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ExportError(
            f"{folder} needs {_gigabytes(needed_bytes)}, but only {_gigabytes(free)} are free. "
            "Make room, or choose a smaller dtype or another folder; nothing was written."
        )


def move_files(stage: Path, target: Path, *, last: str) -> None:
    """Move the files of `stage` into `target`, over older ones; `last` says that all are there."""
    (target / last).unlink(missing_ok=True)
    for path in sorted(stage.iterdir()):
        if path.name != last:
            path.replace(target / path.name)
    (stage / last).replace(target / last)


def move_folder(stage: Path, target: Path) -> None:
    """Put the folder `stage` where `target` is; an older `target` goes only after that."""
    retired = target.with_name(f".retired-{target.name}-{os.getpid()}")
    for older in target.parent.glob(f".retired-{target.name}-*"):  # of a process that was killed
        shutil.rmtree(older, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    stage.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """Give every file the permissions of a new file: safetensors' are the owner's alone."""
    probe = folder / ".probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.iterdir():
        path.chmod(mode)


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file."""

    size_bytes: int
    sha256: str


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Read back every file of a folder and return its size and hash, by name."""
    return {
        path.name: FileRecord(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def damaged_files(folder: Path, records: Mapping[str, FileRecord]) -> list[str]:
    """Return the names of files that are missing or not what was written."""
    return [
        name
        for name, record in records.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != record.sha256
    ]


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _export_error(target: Path, error: Exception) -> ExportError:
    return ExportError(
        f"could not write to {target}: {error}. Nothing half-written is left; "
        "make room or choose another folder, then try again."
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
