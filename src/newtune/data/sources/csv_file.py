"""CSV with a header: each row a mapping of text; quoted cells may hold line breaks."""

import csv
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from newtune.data.sources.data_file import DataFile
from newtune.data.sources.records import Index, Records, make_index
from newtune.data.sources.rows import Row, RowError, Table
from newtune.errors import DataError

LONGEST_CELL = 256 << 20
"""Characters of one cell; also what an unclosed quote is read on for."""


def open_csv(file: DataFile, reopen: tuple[Any, ...]) -> Table:
    """Return the rows of a CSV file; the header's line is none of them.

    Raises:
        DataError: the header is missing, not text, or names a column twice.
    """
    csv.field_size_limit(LONGEST_CELL)
    header = _header(file)
    index = make_index(file, _scan, "csv")
    return Records(file, index, partial(_parse, header=header), unit="row", reopen=reopen)


def _header(file: DataFile) -> list[str]:
    with file.open() as opened:
        records = _records(opened)
        start, end, line = next(records, (0, 0, 1))
        opened.seek(start)
        content = opened.read(end - start)
    where = f"{file.name}, line {line}"
    try:
        cells = _cells(content)
    except RowError as error:
        raise DataError(f"{where}: {error}") from error
    twice = next((cell for cell in cells if cells.count(cell) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the header names the column `{twice}` twice. Rename one.")
    if not cells:
        raise DataError(f"{file.name}: holds no rows.")
    return cells


def _parse(content: bytes, header: list[str]) -> Row:
    cells = _cells(content)
    if len(cells) != len(header):
        raise RowError(f"has more or fewer cells than the header: {len(cells)}, not {len(header)}.")
    return dict(zip(header, cells, strict=True))


def _cells(content: bytes) -> list[str]:
    if b"\0" in content:
        raise RowError("holds null bytes; is it a text file, in UTF-8?")
    try:
        return next(csv.reader([content.decode("utf-8")], strict=True), [])
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 at byte {error.start + 1} of the row.") from error
    except csv.Error as error:
        raise RowError(f"malformed CSV: {_explain(error)}.") from error


def _explain(error: csv.Error) -> str:
    text = str(error)
    return "a quote is never closed" if text == "unexpected end of data" else text


def _scan(file: DataFile) -> Iterator[Index]:
    """Yield where the records after the header stand."""
    with file.open() as opened:
        records = _records(opened)
        next(records, None)
        block = []
        for record in records:
            block.append(record)
            if len(block) == 1 << 16:
                yield np.array(block, np.int64)
                block.clear()
        yield np.array(block, np.int64).reshape(-1, 3)


class _Lines:
    """The file's lines as the reader takes them, and how far it has come."""

    def __init__(self, opened: BinaryIO) -> None:
        self.opened = opened
        self.pieces: Iterator[bytes] = iter(())
        self.byte = 3 if opened.read(3) == b"\xef\xbb\xbf" else 0
        opened.seek(self.byte)
        self.line = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self.pieces, None)
        if piece is None:
            line = next(self.opened)
            # a lone \r ends a line too
            self.pieces = iter(line.splitlines(keepends=True)) if b"\r" in line else iter((line,))
            piece = next(self.pieces)
        self.byte += len(piece)
        self.line += 1
        return piece.decode("utf-8", "surrogateescape")


def _records(opened: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield first byte, end and line of each record that is not blank, the header's first.

    What the reader refuses is a record too: reading it will say what is wrong.
    """
    lines = _Lines(opened)
    reader = csv.reader(lines, strict=True)
    while True:
        start, line = lines.byte, lines.line
        try:
            blank = not next(reader)
        except StopIteration:
            return
        except csv.Error:
            blank = False
        if not blank:
            yield start, lines.byte, line
