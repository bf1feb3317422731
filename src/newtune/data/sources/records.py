"""Rows that are pieces of a file's bytes: where each stands is known, none is held in memory.

The index has one line of three numbers for each record: its first byte, the byte after its last,
and its line in the file, counted from 1. A small file's index is made anew wherever the file is
opened; a large one's is written to the cache once and mapped into memory.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newtune.data.sources.data_file import DataFile
from newtune.data.sources.rows import Malformed, Row, RowError
from newtune.errors import DataError

NEAR = 64
"""Bytes that are read over rather than jumped over: a jump empties the file's buffer."""

Index = NDArray[np.int64]  # Int64[ndarray, "records 3"]
Scan = Callable[[DataFile], Iterator[Index]]

INDEX_VERSION = 1
INDEX_KEPT_FROM = 64 << 20
"""Bytes of a file from which its index is kept: below, making it takes less than 0.1 s."""


class Records:
    """Rows parsed out of a file when they are asked for."""

    def __init__(
        self,
        file: DataFile,
        index: Index,
        parse: Callable[[bytes], Row],
        *,
        unit: str,
        reopen: tuple[Any, ...],
    ) -> None:
        self.file = file
        self.index = index
        self.parse = parse
        self.unit = unit
        """What the user counts: `line` or `row`."""
        self.reopen = reopen
        """The function, and its arguments, that open this table in another process."""

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reopen

    def read(self, positions: range) -> Sequence[Row]:
        """Return the rows at these positions.

        Raises:
            DataError: a row is malformed, and such rows are not to be dropped.
        """
        rows = []
        for position, content in zip(positions, self._contents(positions), strict=True):
            try:
                rows.append(self.parse(content))
            except RowError as error:
                if not self.file.drop_malformed:
                    raise DataError(f"{self.place(position)}: {error}") from error
                rows.append(Malformed(str(error)))
        return rows

    def place(self, position: int) -> str:
        """Return `file, line 3` or `file, row 3`."""
        number = int(self.index[position, 2]) if self.unit == "line" else position + 1
        return f"{self.file.name}, {self.unit} {number}"

    def _contents(self, positions: range) -> Iterator[bytes]:
        chosen = self.index[positions.start : positions.stop : positions.step, :2].tolist()
        with self.file.open() as file:
            at = 0
            for start, end in chosen:
                if not at <= start <= at + NEAR:
                    file.seek(start)
                elif start > at:
                    file.read(start - at)
                yield file.read(end - start)
                at = end


def make_index(file: DataFile, scan: Scan, name: str) -> Index:
    """Return the index of a file's records, which `scan` yields a block at a time."""
    if file.size < INDEX_KEPT_FROM:
        return np.concatenate([np.empty((0, 3), np.int64), *scan(file)])
    path = file.made_once(f"{name}-{INDEX_VERSION}.index", lambda path: _write(scan(file), path))
    if not path.stat().st_size:
        return np.empty((0, 3), np.int64)
    return np.memmap(path, np.int64, mode="r").reshape(-1, 3)


def _write(blocks: Iterator[Index], path: Path) -> None:
    with path.open("wb") as file:
        for block in blocks:
            np.ascontiguousarray(block).tofile(file)


BLOCK = 8 << 20
"""Bytes looked at together."""

_BLANK_STARTS = np.zeros(256, dtype=np.bool_)
_BLANK_STARTS[[9, 10, 11, 12, 13, 32]] = True  # what bytes.strip() takes away


def scan_lines(file: DataFile, *, blanks: bool = False) -> Iterator[Index]:
    r"""Yield where the lines stand, without their `\n`; those of white space only with `blanks`."""
    with file.open() as opened:
        first = opened.read(3)
        start = 3 if first == b"\xef\xbb\xbf" else 0
        opened.seek(start)
        offset, line, rest = start, 1, b""
        while block := opened.read(BLOCK):
            block = rest + block
            breaks = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
            found = _lines(block, breaks, blanks=blanks)
            yield found + np.array([offset, offset, line])
            done = int(breaks[-1]) + 1 if len(breaks) else 0
            rest, offset, line = block[done:], offset + done, line + len(breaks)
    if rest and (blanks or rest.strip()):
        yield np.array([[offset, offset + len(rest), line]])


def _lines(block: bytes, breaks: Index, *, blanks: bool) -> Index:
    if not len(breaks):
        return np.empty((0, 3), np.int64)
    starts = np.concatenate([[0], breaks[:-1] + 1])
    lines = np.stack([starts, breaks, np.arange(len(breaks))], axis=1)
    if blanks:
        return lines
    kept = np.ones(len(lines), dtype=np.bool_)
    for number in np.flatnonzero(_BLANK_STARTS[np.frombuffer(block, np.uint8)[starts]]).tolist():
        start, end, _ = lines[number]
        kept[number] = bool(block[start:end].strip())
    return lines[kept]
