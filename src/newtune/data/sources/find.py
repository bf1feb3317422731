"""Which files a configured source has: on this machine, or at addresses; None for a hub's."""

from pathlib import Path

from newtune.data.sources.files import Found, Source, existing, local_files, named_files
from newtune.data.sources.kinds import KINDS
from newtune.data.sources.remote import is_address, remote_files


def find_files(source: Source, split: str) -> list[Found] | None:
    """Return the source's files in order, downloaded where needed; None for a dataset of a hub.

    Raises:
        DataError: one is not there, or cannot be downloaded.
        SetupError: the package for a protocol is missing.
    """
    path, cache = source.path, source.cache_folder
    if source.data_files and path in {*KINDS.values(), "jsonl"}:
        return _each(source, split, source.base_folder)
    if is_address(path):
        if not source.data_files:
            return remote_files(path, split, source.kind, cache)
        return _each(source, split, f"{path.rstrip('/')}/")
    root = existing(path, source.base_folder)
    if source.data_files and root is not None and root.is_dir():
        return _each(source, split, root)
    return local_files(path, source.base_folder, split, source.kind)


def _each(source: Source, split: str, inside: Path | str) -> list[Found]:
    """Return the `data_files`, each an address or a name inside a folder or an address."""
    found: list[Found] = []
    for name in source.data_files:
        if is_address(name):
            found += remote_files(name, split, source.kind, source.cache_folder)
        elif isinstance(inside, str):
            found += remote_files(inside + name, split, source.kind, source.cache_folder)
        else:
            found += named_files(name, inside)
    return found
