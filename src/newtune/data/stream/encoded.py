"""One source of a stream: its rows as tokens, without end, from any position on."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP client

from newtune.data.build import EncodedRows, Limits, RowReader, fit
from newtune.data.counts import Tally
from newtune.data.sources import NumberedRow
from newtune.data.stream.rows import Identity, RowSource
from newtune.data.stream.state import Position, StreamRow
from newtune.errors import DataError
from newtune.logs import notice
from newtune.types import Example

CHUNK_ROWS = 256
"""Rows rendered and tokenised at a time."""

BARREN_ROWS = 100_000
"""So many rows in a row without an example are a mistake, not a stretch of the data."""

PAUSES = (1.0, 5.0, 20.0)
"""Seconds to wait before each new try of a read that failed."""


def read_errors() -> tuple[type[Exception], ...]:
    """What reading over a network or from a shared disk raises when it fails.

    fsspec reads `http(s)://` through aiohttp, an extra whose errors are no OSErrors; where it has
    not been imported nothing can raise them.
    """
    aiohttp = sys.modules.get("aiohttp")
    return (OSError, HTTPError) if aiohttp is None else (OSError, HTTPError, aiohttp.ClientError)


class EncodedSource:
    """The rows of a source as examples; its end is followed by its beginning.

    `take` with the position that the last one returned goes on at no cost; any other position is
    looked up.
    """

    def __init__(
        self,
        rows: RowSource,
        reader: RowReader,
        limits: Limits,
        *,
        chunk: int = CHUNK_ROWS,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.rows = rows
        self.reader = reader
        self.limits = limits
        self.chunk = chunk
        self.pause = pause
        self.turns = self.ended = 0
        """Trained turns of conversations read so far, and those whose end token is trained."""
        self._iterator: Iterator[NumberedRow] | None = None
        self._next = Position()
        self._read_to = Position()
        self._ready: deque[tuple[StreamRow, Position]] = deque()
        self._barren = 0
        self._rows_since_beginning: int | None = None
        self._last_drop = ("", "")
        self._told = False

    @property
    def name(self) -> str:
        """The source's path."""
        return self.rows.name

    def take(self, position: Position) -> tuple[StreamRow, Position]:
        """Return the first row at or after a position, and the position after it.

        Raises:
            DataError: a row is wrong, the source cannot be read, or holds no trained token.
        """
        if self._iterator is None or position != self._next:
            self._seek(position)
        while not self._ready:
            self._read_chunk()
        row, self._next = self._ready.popleft()
        self._barren = 0 if row.examples else self._barren + 1
        self._last_drop = row.drops[0] if row.drops else self._last_drop
        self._require_examples(BARREN_ROWS)
        return row, self._next

    def return_to(self, identity: Identity) -> None:
        """Read the rows that a checkpoint's positions mean.

        Raises:
            DataError: they are not there any more.
        """
        self.rows.return_to(identity)
        self._iterator = None

    def _seek(self, position: Position) -> None:
        self._ready.clear()
        self._read_to = self._next = position
        self._barren = 0
        self._rows_since_beginning = None if position.row else 0
        self._iterator = self.rows.read(position.row, position.anchor)

    def _read_chunk(self) -> None:
        anchor = self.rows.anchor()
        chunk = self._rows_of_chunk()
        if not chunk:
            self._begin_again()
            return
        if self._rows_since_beginning is not None:
            self._rows_since_beginning += len(chunk)
        encoded = self.reader.read(chunk)
        self.turns += encoded.turns
        self.ended += encoded.ended
        passes = self._read_to.passes
        for row in rows_of(encoded, self.reader, self.limits):
            self._ready.append((row, Position(passes, row.number, anchor)))

    def _rows_of_chunk(self) -> list[NumberedRow]:
        """Read the next rows; after a read that failed, from the first of them that is missing."""
        chunk: list[NumberedRow] = []
        tries = 0
        while len(chunk) < self.chunk:
            try:
                assert self._iterator is not None
                row = next(self._iterator, None)
            except read_errors() as error:
                tries += 1
                self._wait_after(error, tries)
                self._iterator = self.rows.read(self._read_to.row, self._read_to.anchor)
                continue
            if row is None:
                break
            tries = 0
            chunk.append(row)
            self._read_to = replace(self._read_to, row=row.number)
        self._read_to = replace(self._read_to, anchor=self.rows.anchor())
        return chunk

    def _wait_after(self, error: Exception, tries: int) -> None:
        where = f"{self.name}, after row {self._read_to.row}"
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if tries > len(PAUSES):
            raise DataError(
                f"{where}: reading failed {tries} times ({reason}). Complete checkpoints are kept: "
                "go on with `--resume` when the source can be read again."
            ) from error
        seconds = PAUSES[tries - 1]
        notice(f"{where}: reading failed ({reason}); again in {seconds:g} s")
        self.pause(seconds)

    def _begin_again(self) -> None:
        if self._rows_since_beginning == 0:
            raise DataError(f"{self.name}: holds no rows to train on.")
        if self._rows_since_beginning:
            self._require_examples(self._rows_since_beginning)
        passes = self._read_to.passes + 1
        if not self._told:
            self._told = True
            notice(f"{self.name}: read to its end, row {self._read_to.row}; it begins again")
        self._read_to = Position(passes)
        self._rows_since_beginning = 0
        self._iterator = self.rows.read(0)

    def _require_examples(self, rows: int) -> None:
        """Stop when so many rows in a row gave nothing to train on."""
        if self._barren >= rows:
            reason, place = self._last_drop
            raise DataError(
                f"{self.name}: {self._barren:,} rows in a row gave no trained token; the last, "
                f"{place}: {reason}."
            )


def rows_of(encoded: EncodedRows, reader: RowReader, limits: Limits) -> list[StreamRow]:
    """Return what became of each row of a chunk, in the order of the rows.

    Raises:
        DataError: a row is too long and `excess_length_strategy` is `raise`.
    """
    tally = Tally()
    for origin, reason in encoded.drops:
        tally.drop(reason, origin.number, origin.place)
    batch, numbers = fit(encoded, reader.format, limits, tally)
    examples: dict[int, list[Example]] = {}
    ends = np.cumsum(batch.lengths)
    starts = ends - batch.lengths
    for number, start, end in zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True):
        example = Example(batch.input_ids[start:end], batch.labels[start:end])
        examples.setdefault(number, []).append(example)
    drops: dict[int, list[tuple[str, str]]] = {}
    for reason, rows in tally.dropped.items():
        for number, place in rows:
            drops.setdefault(number, []).append((reason, place))
    truncated = set(tally.truncated)
    every = sorted({origin.number for origin in encoded.origins} | drops.keys())
    return [
        StreamRow(number, examples.get(number, ()), drops.get(number, ()), number in truncated)
        for number in every
    ]
