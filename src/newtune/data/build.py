"""Rows of one dataset → examples in a store, a chunk at a time, everything counted."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newtune.data.counts import DatasetCounts, Tally
from newtune.data.formats import Format, FormatOptions, PromptMapping, make_format
from newtune.data.rendered import Drop, Outcome, Rendered, Tokens
from newtune.data.sources import Malformed, NumberedRow, Rows
from newtune.data.store import ExampleWriter
from newtune.data.tokenize import TextEncoder, TokenBatch, as_batch, end_to_end
from newtune.errors import DataError

ROWS_WORTH_PROCESSES = 50_000
"""From so many rows on, starting processes (seconds) costs less than they save."""

MALFORMED = Drop("malformed")
"""Why a row is left out that cannot be read; where it stands says what is wrong with it."""

Excess = Literal["drop", "truncate", "raise"]


@dataclass(frozen=True)
class Limits:
    """How long an example may be, in tokens."""

    max_tokens: int
    excess: Excess = "drop"
    min_tokens: int = 0


@dataclass(frozen=True)
class RowReader:
    """What turns raw rows into tokens; pickles, so that other processes can do it too."""

    type: str | PromptMapping | None
    options: FormatOptions
    encoder: TextEncoder

    @cached_property
    def format(self) -> Format:
        """The format of the rows."""
        return make_format(self.type, self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowReader, (self.type, self.options, self.encoder)

    def read(self, chunk: Sequence[NumberedRow]) -> "EncodedRows":
        """Return the tokens of some rows; a chunk's ready-made tokens come after its texts."""
        texts: list[tuple[Origin, Rendered]] = []
        tokens: list[tuple[Origin, Tokens]] = []
        drops: list[tuple[Origin, str]] = []
        for row in chunk:
            origin, outcome = self._read_row(row)
            if isinstance(outcome, Drop):
                drops.append((origin, outcome.reason))
            elif isinstance(outcome, Rendered):
                texts.append((origin, outcome))
            else:
                tokens.append((origin, outcome))
        rendered = [text for _, text in texts]
        batches = [self.encoder.encode(rendered)] if rendered else []
        batches += [as_batch([row for _, row in tokens])] if tokens else []
        return EncodedRows(
            batch=end_to_end(batches),
            origins=[origin for origin, _ in [*texts, *tokens]],
            drops=drops,
            turns=sum(text.turns for text in rendered),
            ended=sum(text.ended for text in rendered),
        )

    def _read_row(self, row: NumberedRow) -> tuple["Origin", Outcome]:
        """Return what the format makes of a row; where asked for, a malformed one is dropped."""
        if isinstance(row.row, Malformed):
            return Origin(row.number, f"{row.place}: {row.row.reason}"), MALFORMED
        try:
            return Origin(row.number, row.place), self.format.read(row)
        except DataError as error:
            if not self.options.drop_malformed:
                raise
            return Origin(row.number, str(error)), MALFORMED


class Origin(NamedTuple):
    """A row's number in its source, and where it stands, in words."""

    number: int
    place: str


class EncodedRows(NamedTuple):
    """Examples of a chunk, the rows they came from, and the rows that gave none."""

    batch: TokenBatch
    origins: Sequence[Origin]
    drops: Sequence[tuple[Origin, str]]
    turns: int
    ended: int


def build_examples(
    rows: Rows,
    reader: RowReader,
    limits: Limits,
    writer: ExampleWriter,
    *,
    name: str,
    dataset: int,
    processes: int = 1,
) -> DatasetCounts:
    """Write the examples of one dataset and return what was counted.

    Raises:
        DataError: a row is wrong, nothing can be trained, or the end of a trained turn never is.
    """
    tally = Tally(name)
    turns = ended = 0
    for encoded in _encode(rows, reader, processes):
        tally.rows_read += len(encoded.origins) + len(encoded.drops)
        turns, ended = turns + encoded.turns, ended + encoded.ended
        for origin, reason in encoded.drops:
            tally.drop(reason, origin.number, origin.place)
        batch, numbers = fit(encoded, reader.format, limits, tally)
        tally.lengths.append(batch.lengths)
        tally.trained_tokens += int(batch.trained().sum())
        if len(numbers):
            writer.write(batch, dataset=dataset, rows=numbers)
    counts = tally.total()
    _check_trained(counts)
    if turns and not ended:
        _check_ends(reader.options, name)
    return counts


def _encode(rows: Rows, reader: RowReader, processes: int) -> Iterator[EncodedRows]:
    """Read chunks ahead, in order.

    Two threads let one chunk be rendered while the tokenizer, which needs no interpreter lock and
    has its own threads, works on another; processes are worth their start for many rows only.
    """
    many = processes > 1 and len(rows) >= ROWS_WORTH_PROCESSES
    workers = processes if many else 2
    with _executor(workers, processes=many) as executor:
        ahead: deque[Future[EncodedRows]] = deque()
        for chunk in rows.chunks():
            ahead.append(executor.submit(reader.read, chunk))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _executor(workers: int, *, processes: bool) -> Executor:
    if not processes:
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def fit(
    encoded: EncodedRows, format: Format, limits: Limits, tally: Tally
) -> tuple[TokenBatch, NDArray[np.int64]]:
    """Cut, truncate or drop what is too long, and drop what is too short or untrained."""
    batch, rows = encoded.batch, encoded.origins
    places = np.arange(len(rows))
    too_long = batch.lengths > limits.max_tokens
    if format.cut:
        tally.rows_cut += int(too_long.sum())
        batch, places = batch.cut(limits.max_tokens)
    elif too_long.any():
        if limits.excess == "raise":
            first = int(np.argmax(too_long))
            raise DataError(
                f"{rows[first].place}: {batch.lengths[first]} tokens, `sequence_len` is "
                f"{limits.max_tokens}. Raise it, or set `excess_length_strategy` to drop or "
                "truncate."
            )
        if limits.excess == "truncate":
            tally.truncate(
                np.array([rows[place].number for place in np.flatnonzero(too_long).tolist()])
            )
            batch = batch.truncate(limits.max_tokens)
    reasons = {
        f"longer than {limits.max_tokens} tokens": batch.lengths > limits.max_tokens,
        f"shorter than {limits.min_tokens} tokens": batch.lengths < limits.min_tokens,
        "no token": batch.lengths == 0,
        "no trained token": batch.trained() == 0,
    }
    kept = np.ones(len(places), dtype=np.bool_)
    for reason, applies in reasons.items():
        for place in places[applies & kept].tolist():
            tally.drop(reason, rows[place].number, rows[place].place)
        kept &= ~applies
    numbers = np.array([row.number for row in rows], dtype=np.int64)
    return batch.keep(kept), numbers[places[kept]]


def _check_trained(counts: DatasetCounts) -> None:
    if counts.trained_tokens:
        return
    reasons = "; ".join(
        f"{dropped.rows} rows: {dropped.reason} (first: {dropped.examples[0]})"
        for dropped in counts.dropped
    )
    raise DataError(f"{counts.name}: no trained token in {counts.rows_read} rows. {reasons}.")


def _check_ends(options: FormatOptions, name: str) -> None:
    if "turn" not in (options.train_on_eos, options.train_on_eot):
        return
    raise DataError(
        f"{name}: the chat template never ends a trained turn with an end-of-turn token, so the "
        f"model would not learn to stop (end tokens looked for: {', '.join(options.end_tokens)}). "
        "Set `eot_tokens` to what ends a turn, another `chat_template`, or `train_on_eos: none`."
    )
