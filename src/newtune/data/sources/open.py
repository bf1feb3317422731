"""A configured source → its rows: find the files, open them, choose."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from newtune.data.sources.columnar import open_arrow, open_parquet
from newtune.data.sources.csv_file import open_csv
from newtune.data.sources.data_file import DataFile
from newtune.data.sources.files import Found, Source
from newtune.data.sources.find import find_files
from newtune.data.sources.json_file import open_json
from newtune.data.sources.kinds import kind_of
from newtune.data.sources.rows import Joined, Rows, Table
from newtune.data.sources.split import parse_split
from newtune.data.sources.text_file import open_text
from newtune.data.sources.unpack import unpack
from newtune.errors import DataError

OPENERS: Mapping[str, Callable[[DataFile, tuple[Any, ...]], Table]] = {
    "json": open_json,
    "jsonl": open_json,
    "csv": open_csv,
    "arrow": open_arrow,
    "parquet": open_parquet,
    "text": open_text,
}
"""`ds_type` → what opens a file of it."""

_ENCODINGS: Mapping[bytes, str] = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def open_source(source: Source) -> Rows:
    """Find a source and return its rows; nothing is parsed yet but where they stand.

    Raises:
        DataError: the source is missing, empty, or of unknown kind; a slice is malformed.
    """
    split, choice = parse_split(source.split)
    files = find_files(source, split)
    if files is not None:
        table = _open_files(files, source)
        content = _hash_files(files)
    else:
        from newtune.data.hub import open_hub

        table, content = open_hub(source, split)
    if not len(table):
        raise DataError(f"{source.path}: holds no rows.")
    positions = choice(len(table))
    if source.shards:
        positions = positions[source.shard :: source.shards]
    if not positions:
        raise DataError(f"{source.path}: `split: {source.split}` chooses none of its rows.")
    return Rows(table, positions, f"{content}:{positions}")


@lru_cache(maxsize=256)
def open_file(file: DataFile, kind: str) -> Table:
    """Return the rows of one unpacked file; asked again for the same file, the same table.

    This is what a pickled table calls in another process.

    Raises:
        DataError: the file is broken as a whole, or not of this kind.
    """
    if kind not in {"arrow", "parquet"}:
        _refuse_other_encodings(file)
    return OPENERS[kind](file, (open_file, (file, kind)))


def _open_files(files: Sequence[Found], source: Source) -> Table:
    tables = []
    for found in files:
        kind = source.kind or (source.path if source.path in OPENERS else kind_of(found.path.name))
        if kind is None or kind not in OPENERS:
            known = ", ".join(sorted(OPENERS))
            raise DataError(
                f"{found.name}: what kind of file is this? Set `ds_type` to one of {known}."
            )
        file = DataFile.of(
            found.path, found.name, source.cache_folder, drop_malformed=source.drop_malformed
        )
        if not file.size:
            raise DataError(f"{found.name}: the file is empty.")
        tables.append(open_file(unpack(file), kind))
    return tables[0] if len(tables) == 1 else Joined(tables)


def _refuse_other_encodings(file: DataFile) -> None:
    with file.open() as opened:
        encoding = _ENCODINGS.get(opened.read(2))
    if encoding:
        raise DataError(
            f"{file.name}: is {encoding}. Save it as UTF-8 "
            f"(`iconv -f {encoding} -t UTF-8 FILE > NEW_FILE`)."
        )


def _hash_files(files: Sequence[Found]) -> str:
    digest = hashlib.sha256()
    for found in files:
        try:
            with found.path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{found.name}: cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
