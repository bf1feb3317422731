"""What a file's name says of it: its kind (`ds_type`) and how it is compressed."""

from collections.abc import Mapping
from pathlib import PurePosixPath

KINDS: Mapping[str, str] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".arrow": "arrow",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
"""File suffix → `ds_type`."""

COMPRESSIONS: Mapping[str, str] = {
    ".gz": "gzip",
    ".zst": "Zstandard",
    ".bz2": "bzip2",
    ".xz": "xz",
}
"""File suffix → what packed the file."""


def kind_of(name: str) -> str | None:
    """Return the kind of file that a name tells, such as `rows.jsonl.gz`; None if it does not."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def compression_of(name: str) -> str | None:
    """Return how a file is packed, by its name; None for one that is not."""
    return COMPRESSIONS.get(PurePosixPath(name).suffix.lower())
