"""The rows of a source from any position on."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from newtune.data.sources import NumberedRow, Rows
from newtune.data.stream.state import Anchor
from newtune.errors import DataError

ROWS_AT_ONCE = 256
"""Rows taken out of a file at a time."""

Identity = Mapping[str, Any]
"""What tells whether a position still means the same row, as JSON values."""


class RowSource(Protocol):
    """Rows in an order that is always the same, from any position on."""

    @property
    def name(self) -> str:
        """The source's path, for messages."""
        ...

    @property
    def identity(self) -> Identity:
        """What a checkpoint keeps of the source, so that a position means the same row again."""
        ...

    def return_to(self, identity: Identity) -> None:
        """Make the rows those that a checkpoint's positions mean.

        Raises:
            DataError: they are not there any more.
        """
        ...

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
        self.rows = Rows(rows.table, rows.positions[skip:], f"{rows.fingerprint}:{skip}")
        """Without the `skip` first ones."""

    @property
    def identity(self) -> Identity:
        """The content of the files and which of their rows are read."""
        return {"content": self.rows.fingerprint}

    def return_to(self, identity: Identity) -> None:
        """Check that the files are those of the checkpoint.

        Raises:
            DataError: they are not.
        """
        if identity != self.identity:
            raise changed(self.name, "its files have another content")

    def read(self, start: int, anchor: Anchor | None = None) -> Iterator[NumberedRow]:
        """Yield the chosen rows from position `start` on; no short cut is needed.

        Raises:
            DataError: a row is malformed; file and line are named.
        """
        chosen, table = self.rows.positions, self.rows.table
        for first in range(bisect_left(chosen, start), len(chosen), ROWS_AT_ONCE):
            positions = chosen[first : first + ROWS_AT_ONCE]
            for position, row in zip(positions, table.read(positions), strict=True):
                yield NumberedRow(position + 1, row, table.place(position))

    def anchor(self) -> Anchor | None:
        """Return None: any row is found at once."""
        return None


def changed(name: str, how: str) -> DataError:
    """Return the error about a source that a checkpoint's position means nothing in."""
    return DataError(
        f"{name}: not the data that the checkpoint's run has read: {how}. Bring that data back, or "
        "start a new run in another `output_dir`."
    )
