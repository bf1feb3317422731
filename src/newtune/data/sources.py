"""Where rows come from: local files and folders, or a hub; read a chunk at a time.

Rows keep their number in the source, counted from 1, so that every message can name one.
"""

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet

from newtune.errors import DataError
from newtune.lookup import did_you_mean

Row = Mapping[str, Any]

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

CHUNK = 2048
"""Rows read at a time."""


@dataclass(frozen=True)
class Source:
    """One configured dataset's place: a file, a folder, or a hub id, and which rows of it."""

    path: str
    kind: str | None = None
    """`ds_type`; None reads it off the file's name."""
    data_files: tuple[str, ...] = ()
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    trust_remote_code: bool = False
    shards: int | None = None
    shard: int = 0
    base_folder: Path = Path()
    """Where relative paths are looked up besides the working directory."""


class Table(Protocol):
    """Rows by position; positions count from 0."""

    def __len__(self) -> int: ...

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions."""
        ...

    def place(self, position: int) -> str:
        """Return `file, line 3` or `name, row 3`."""
        ...


class NumberedRow(NamedTuple):
    """A row, its number in the source (from 1) and where it stands, in words."""

    number: int
    row: Row
    place: str


class Rows:
    """The rows of a source that the configuration asks for."""

    def __init__(self, table: Table, positions: range, fingerprint: str) -> None:
        self.table = table
        self.positions = positions
        self.fingerprint = fingerprint
        """Changes when the content of the source or the choice of rows changes."""

    def __len__(self) -> int:
        return len(self.positions)

    def chunks(self, size: int = CHUNK) -> Iterator[list[NumberedRow]]:
        """Yield the rows, `size` at a time.

        Raises:
            DataError: a row is malformed; file and line are named.
        """
        for start in range(0, len(self.positions), size):
            positions = self.positions[start : start + size]
            rows = self.table.read(positions)
            yield [
                NumberedRow(position + 1, row, self.table.place(position))
                for position, row in zip(positions, rows, strict=True)
            ]


def open_source(source: Source) -> Rows:
    """Find a source and return its rows; nothing is read yet but sizes and content hashes.

    Raises:
        DataError: the source is missing, empty, or of unknown kind; a slice is malformed.
    """
    split, choice = parse_split(source.split)
    files = _local_files(source, split)
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


_SPLIT = re.compile(r"^(?P<name>[^\[\]]+?)(?:\[(?P<from>-?\d+%?)?:(?P<to>-?\d+%?)?\])?$")


def parse_split(text: str) -> tuple[str, Callable[[int], range]]:
    """Return the split's name and what chooses positions out of so many rows.

    `train`, `train[:500]`, `train[10%:20%]`, `train[-100:]`.

    Raises:
        DataError: the text is none of these.
    """
    match = _SPLIT.match(text.strip())
    if not match:
        raise DataError(f"`split: {text}` is not understood; write `train[:500]` or `train[10%:]`.")
    start, end = match["from"], match["to"]

    def choose(rows: int) -> range:
        return range(rows)[_bound(start, rows) : _bound(end, rows)]

    return match["name"], choose


def _bound(text: str | None, rows: int) -> int | None:
    if text is None:
        return None
    return round(rows * int(text[:-1]) / 100) if text.endswith("%") else int(text)


def _local_files(source: Source, split: str) -> list[Path] | None:
    """Return the files of a local source, in order; None when the path is not local."""
    root = _existing(source.path, source.base_folder)
    if root is None and _looks_local(source.path):
        raise DataError(
            f"{source.path}: no such file or folder. {_similar(source.path, source.base_folder)}"
        )
    if source.path in set(KINDS.values()) and source.data_files:
        return [_required(name, source.base_folder) for name in source.data_files]
    if root is None:
        return None
    if root.is_file():
        return [root]
    if source.data_files:
        return [_required(name, root) for name in source.data_files]
    return _files_of_folder(root, split, source.kind)


def _existing(name: str, folder: Path) -> Path | None:
    given = Path(name).expanduser()
    candidates = [folder / given, given]
    return next((path for path in candidates if path.exists()), None)


def _required(name: str, folder: Path) -> Path:
    found = _existing(name, folder)
    if found is None:
        raise DataError(f"{name}: no such file in {folder.resolve()}. {_similar(name, folder)}")
    return found


def _looks_local(path: str) -> bool:
    """Tell a path from a hub id: hub ids have at most one slash and no data suffix."""
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        return True
    return _kind_of(Path(path)) is not None


def _similar(name: str, folder: Path) -> str:
    parent = (folder / Path(name).expanduser()).parent
    names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    hint = did_you_mean(Path(name).name, names)
    return (
        hint[:1].upper() + hint[1:]
        if hint
        else "Check `path`; it is taken from the folder of "
        "the configuration file, else from the working directory."
    )


def _kind_of(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def _files_of_folder(folder: Path, split: str, kind: str | None) -> list[Path]:
    """Return the folder's data files; those named after the split, if any are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _kind_of(path))
    files = [path for path in files if not path.name.startswith(".")]
    if any(_kind_of(path) != "text" for path in files):
        files = [path for path in files if _kind_of(path) != "text" or kind == "text"]
    named = [path for path in files if split in re.split(r"[-_.]", path.name)]
    named = named or [path for path in files if split in path.relative_to(folder).parts]
    chosen = named or files
    if not chosen:
        raise DataError(f"{folder}: no data file in it ({', '.join(sorted(KINDS))}).")
    return chosen


def _hash_files(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _open_files(files: Sequence[Path], source: Source) -> Table:
    tables = []
    for path in files:
        kind = source.kind or (source.path if source.path in OPENERS else _kind_of(path))
        if kind is None or kind not in OPENERS:
            known = ", ".join(sorted(OPENERS))
            raise DataError(f"{path}: what kind of file is this? Set `ds_type` to one of {known}.")
        if not path.stat().st_size:
            raise DataError(f"{path}: the file is empty.")
        tables.append(OPENERS[kind](path))
    return tables[0] if len(tables) == 1 else Joined(tables)


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked when its name ends in `.gz`.

    Raises:
        DataError: the file is no whole gzip file.
    """
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from error


class Joined:
    """Several tables, one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions."""
        return [table.read(range(at, at + 1))[0] for table, at in map(self._find, positions)]

    def place(self, position: int) -> str:
        """Return the file's own words for the position."""
        table, at = self._find(position)
        return table.place(at)

    def _find(self, position: int) -> tuple[Table, int]:
        for table in self.tables:
            if position < len(table):
                return table, position
            position -= len(table)
        raise IndexError(position)


@dataclass(frozen=True)
class Listed:
    """Rows that are all in memory."""

    name: str
    rows: Sequence[Row]
    unit: str = "row"

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions."""
        return [self.rows[position] for position in positions]

    def place(self, position: int) -> str:
        """Return `name, row 3`."""
        return f"{self.name}, {self.unit} {position + 1}"


class JsonLines:
    """One JSON object a line; blank lines are skipped, line numbers kept."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.lines = content.split(b"\n")
        self.numbers = [n for n, line in enumerate(self.lines) if line.strip()]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions.

        Raises:
            DataError: a line is not a JSON object.
        """
        return [self._parse(self.numbers[position]) for position in positions]

    def place(self, position: int) -> str:
        """Return `file, line 3`."""
        return f"{self.path}, line {self.numbers[position] + 1}"

    def _parse(self, number: int) -> Row:
        where = f"{self.path}, line {number + 1}"
        try:
            row = json.loads(self.lines[number])
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 at byte {error.start + 1}.") from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: malformed JSON: {error.msg} (column {error.colno})."
            ) from error
        except RecursionError as error:
            raise DataError(f"{where}: nested too deeply.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row must be an object, got {type(row).__name__}.")
        return row


def _open_json(path: Path) -> Table:
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    if content.lstrip()[:1] != b"[":
        return _json_object(path, content) or JsonLines(path, content)
    try:
        rows = json.loads(content)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start + 1}.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}.") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply.") from error
    return _checked(path, rows)


def _json_object(path: Path, content: bytes) -> Table | None:
    """Return the rows of a file that is one object over many lines, or None if it is not."""
    first_line = content.lstrip().split(b"\n", 1)[0].strip()
    if first_line != b"{":
        return None
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}.") from error
    lists = [value for value in document.values() if isinstance(value, list)]
    return _checked(path, lists[0] if len(lists) == 1 else [document])


def _checked(path: Path, rows: list[Any]) -> Table:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number}: a row must be an object, got {type(row).__name__}."
            )
    return Listed(str(path), rows)


def _open_csv(path: Path) -> Table:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start + 1}.") from error
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="(extra)"))
    for number, row in enumerate(rows, 1):
        if "(extra)" in row or None in row.values():
            raise DataError(f"{path}, row {number}: has more or fewer cells than the header.")
    return Listed(str(path), rows)


def _open_text(path: Path) -> Table:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start + 1}.") from error
    return Listed(str(path), [{"text": line} for line in text.splitlines()], unit="line")


class ArrowRows:
    """The rows of an Arrow table, mapped into memory where the file allows it."""

    def __init__(self, name: str, table: pa.Table) -> None:
        self.name = name
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions."""
        if positions.step == 1:
            part = self.table.slice(positions.start, len(positions))
        else:
            part = self.table.take(list(positions))
        rows: list[Row] = part.to_pylist()
        return rows

    def place(self, position: int) -> str:
        """Return `name, row 3`."""
        return f"{self.name}, row {position + 1}"


def _open_arrow(path: Path) -> Table:
    source = pa.memory_map(str(path))
    try:
        table = pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        try:
            table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: not an Arrow file: {error}") from error
    return ArrowRows(str(path), table)


def _open_parquet(path: Path) -> Table:
    try:
        return ArrowRows(str(path), pa.parquet.read_table(path))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error


OPENERS: Mapping[str, Callable[[Path], Table]] = {
    "json": _open_json,
    "jsonl": _open_json,
    "csv": _open_csv,
    "arrow": _open_arrow,
    "parquet": _open_parquet,
    "text": _open_text,
}
"""`ds_type` → what opens a file of it."""
