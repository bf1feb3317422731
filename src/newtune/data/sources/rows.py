"""What a table of rows is, and the rows of it that a configuration asks for."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from newtune.errors import DataError

Row = Mapping[str, Any]

CHUNK = 2048
"""Rows read at a time."""


class RowError(Exception):
    """What is wrong with one row; the table that reads it adds where it stands."""


class Malformed(dict[str, Any]):
    """An empty row that stands for one that cannot be read, where such rows are to be dropped."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return Malformed, (self.reason,)


class TableRow(dict[str, Any]):
    """A row of a table with columns, which gives every nested object the keys of all of them.

    So a null in one may be a value, or stand for a key that the row never had.
    """


class Table(Protocol):
    """Rows by position; positions count from 0.

    A table pickles as the path of its file, so that another process opens the file itself.
    """

    def __len__(self) -> int: ...

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions, `Malformed` ones where they are to be dropped."""
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
    """The rows of a source that the configuration asks for. Pickles as paths and numbers."""

    def __init__(self, table: Table, positions: range, fingerprint: str) -> None:
        self.table = table
        self.positions = positions
        self.fingerprint = fingerprint
        """Changes when the content of the source or the choice of rows changes."""

    def __len__(self) -> int:
        return len(self.positions)

    def row(self, number: int) -> NumberedRow:
        """Return row `number` of the source, counted from 1, whether it was asked for or not.

        Raises:
            DataError: the source has no such row, or it is malformed.
        """
        if not 1 <= number <= len(self.table):
            last = self.table.place(len(self.table) - 1)
            raise DataError(f"There is no row {number}: rows count from 1, the last is {last}.")
        return NumberedRow(
            number, self.table.read(range(number - 1, number))[0], self.table.place(number - 1)
        )

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


class Joined:
    """Several tables, one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.ends = list(accumulate(map(len, tables)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions, which must ascend; each table is asked once."""
        rows: list[Row] = []
        start = 0
        for table, end in zip(self.tables, self.ends, strict=True):
            here = positions[bisect_left(positions, start) : bisect_left(positions, end)]
            if here:
                rows += table.read(range(here.start - start, here[-1] - start + 1, here.step))
            start = end
        return rows

    def place(self, position: int) -> str:
        """Return the file's own words for the position."""
        for table, end in zip(self.tables, self.ends, strict=True):
            if position < end:
                return table.place(position - (end - len(table)))
        raise IndexError(position)
