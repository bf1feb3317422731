"""The rows of a source from any position on."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Protocol

from newtune.data.sources import NumberedRow, Rows
from newtune.data.stream.state import Anchor

ENDLESS = 1 << 62
"""More rows than any source has: stands in for a length that is unknown."""

ROWS_AT_ONCE = 256
"""Rows taken out of a file at a time."""


class RowSource(Protocol):
    """Rows in an order that is always the same, from any position on."""

    name: str
    fingerprint: str
    """Changes when the content does, so that a position is not taken for one in other rows."""

    def read(self, start: int, anchor: Anchor | None = None) -> Iterator[NumberedRow]:
        """Yield the rows from position `start` (0 is the first) to the end of the source.

        `anchor` is a short cut to a position at or before `start`.
        """
        ...

    def anchor(self) -> Anchor | None:
        """Return a short cut to where the last iterator stands; None if there is none."""
        ...


class LocalRows:
    """The rows of files on this machine, which know where each row stands."""

    def __init__(self, name: str, rows: Rows, *, skip: int = 0) -> None:
        self.name = name
        self.table = rows.table
        self.chosen = rows.positions[skip:]
        self.fingerprint = f"{rows.fingerprint}:{skip}"

    def read(self, start: int, anchor: Anchor | None = None) -> Iterator[NumberedRow]:
        """Yield the chosen rows from position `start` on; no short cut is needed.

        Raises:
            DataError: a row is malformed; file and line are named.
        """
        for first in range(bisect_left(self.chosen, start), len(self.chosen), ROWS_AT_ONCE):
            positions = self.chosen[first : first + ROWS_AT_ONCE]
            for position, row in zip(positions, self.table.read(positions), strict=True):
                yield NumberedRow(position + 1, row, self.table.place(position))

    def anchor(self) -> Anchor | None:
        """Return None: any row is found at once."""
        return None
