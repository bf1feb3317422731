"""Arrow and Parquet: columns, mapped into memory or read a group of rows at a time."""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from newtune.data.sources.data_file import DataFile
from newtune.data.sources.rows import Row, Table, TableRow
from newtune.errors import DataError

LARGEST_GROUP = 256 << 20
"""Bytes, unpacked, of a group of Parquet rows that is held in memory. A file with larger ones is
written once as Arrow into the cache, which can be mapped."""


class ArrowRows:
    """The rows of an Arrow table, mapped into memory where it comes from a file."""

    def __init__(self, name: str, table: pa.Table, reopen: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.table = table
        self.reopen = reopen

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reopen or (ArrowRows, (self.name, self.table))

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions."""
        return rows_of(self.table, positions)

    def place(self, position: int) -> str:
        """Return `name, row 3`."""
        return f"{self.name}, row {position + 1}"


def rows_of(table: pa.Table, positions: range) -> list[Row]:
    """Return rows of an Arrow table as mappings."""
    if positions.step == 1:
        part = table.slice(positions.start, len(positions))
    else:
        part = table.take(list(positions))
    return [TableRow(row) for row in part.to_pylist()]


class ParquetRows:
    """The rows of a Parquet file; the group of rows read last stays in memory."""

    def __init__(self, file: DataFile, groups: Sequence[int], reopen: tuple[Any, ...]) -> None:
        self.file = file
        self.ends = list(accumulate(groups))
        self.reopen = reopen
        self._last: tuple[int, pa.Table] | None = None
        self._lock = Lock()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reopen

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions.

        Raises:
            DataError: the group of rows cannot be read.
        """
        rows: list[Row] = []
        while positions:
            group = bisect_right(self.ends, positions[0])
            start = self.ends[group - 1] if group else 0
            here = positions[: len(range(positions.start, self.ends[group], positions.step))]
            local = range(here.start - start, here[-1] - start + 1, here.step)
            rows += rows_of(self._group(group), local)
            positions = positions[len(here) :]
        return rows

    def place(self, position: int) -> str:
        """Return `name, row 3`."""
        return f"{self.file.name}, row {position + 1}"

    def _group(self, group: int) -> pa.Table:
        with self._lock:
            if self._last is None or self._last[0] != group:
                self._last = None
                self._last = (group, self._read_group(group))
            return self._last[1]

    def _read_group(self, group: int) -> pa.Table:
        try:
            with self.file.open() as opened, closing(pq.ParquetFile(opened)) as parquet:
                return parquet.read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            first = self.ends[group - 1] + 1 if group else 1
            raise DataError(
                f"{self.file.name}, rows {first} to {self.ends[group]}: cannot be read: "
                f"{_first_line(error)}"
            ) from error


def open_arrow(file: DataFile, reopen: tuple[Any, ...]) -> Table:
    """Return the rows of an Arrow file, of either layout.

    Raises:
        DataError: it is no Arrow file, or not a whole one.
    """
    return ArrowRows(file.name, map_arrow(file.path, file.name), reopen)


def map_arrow(path: Path, name: str) -> pa.Table:
    """Map an Arrow file of either layout into memory.

    Raises:
        DataError: it is no Arrow file, or not a whole one.
    """
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
    try:
        return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name}: not an Arrow file, or cut off: {_first_line(error)}") from error


def open_parquet(file: DataFile, reopen: tuple[Any, ...]) -> Table:
    """Return the rows of a Parquet file.

    Raises:
        DataError: it is no Parquet file, or not a whole one.
    """
    try:
        with file.open() as opened, closing(pq.ParquetFile(opened)) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            sizes = [group.num_rows for group in groups]
            largest = max((group.total_byte_size for group in groups), default=0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name}: not a Parquet file, or cut off: {_first_line(error)}"
        ) from error
    if largest <= LARGEST_GROUP:
        return ParquetRows(file, sizes, reopen)
    path = file.made_once("parquet-1.arrow", lambda path: _write_arrow(file, path))
    return ArrowRows(file.name, map_arrow(path, file.name), reopen)


def _write_arrow(file: DataFile, path: Path) -> None:
    with file.open() as opened, closing(pq.ParquetFile(opened)) as parquet:
        schema = parquet.schema_arrow
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in parquet.iter_batches(batch_size=4096, use_threads=False):
                writer.write_batch(batch)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
