"""Rows → examples in a file, a chunk at a time, everything counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
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

CHUNK_ROWS = 1024
"""Rows rendered and tokenised at a time."""

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

    def warm_up(self) -> None:
        """Build what is built once, before several threads ask for it at the same time."""
        _ = self.format, self.encoder.backend, self.encoder.covers_text

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


def build_shard(rows: Rows, reader: RowReader, limits: Limits, path: Path) -> Tally:
    """Write the examples of some rows to an Arrow file and return what was counted.

    Raises:
        DataError: a row is wrong, or too long where that is an error.
        OSError: the file cannot be written.
    """
    tally = Tally()
    with ExampleWriter(path) as writer:
        for chunk in rows.chunks(CHUNK_ROWS):
            encoded = reader.read(chunk)
            tally.rows_read += len(chunk)
            tally.turns += encoded.turns
            tally.ended += encoded.ended
            for origin, reason in encoded.drops:
                tally.drop(reason, origin.number, origin.place)
            batch, numbers = fit(encoded, reader.format, limits, tally)
            tally.trained_tokens += int(batch.trained().sum())
            if len(numbers):
                writer.write(batch, numbers)
    return tally


def fit(
    encoded: EncodedRows, format: Format, limits: Limits, tally: Tally
) -> tuple[TokenBatch, NDArray[np.int64]]:
    """Cut, truncate or drop what is too long, and drop what is too short or untrained.

    Returns the examples that are left and the numbers of the rows they came from.

    Raises:
        DataError: an example is too long and `excess` is `raise`.
    """
    batch, rows = encoded.batch, encoded.origins
    numbers = np.array([row.number for row in rows], dtype=np.int64)
    places = np.arange(len(rows))
    too_long = batch.lengths > limits.max_tokens
    if format.cut:
        tally.cut_up(numbers[too_long])
        batch, places = batch.cut(limits.max_tokens)
    elif too_long.any() and limits.excess != "drop":
        _refuse_long(encoded, limits)
        tally.truncate(numbers[too_long])
        batch = batch.truncate(limits.max_tokens)
    kept = _keep(batch, places, encoded, limits, tally)
    return batch.keep(kept), numbers[places[kept]]


def _refuse_long(encoded: EncodedRows, limits: Limits) -> None:
    if limits.excess != "raise":
        return
    lengths = encoded.batch.lengths
    first = int(np.argmax(lengths > limits.max_tokens))
    raise DataError(
        f"{encoded.origins[first].place}: {lengths[first]} tokens, `sequence_len` is "
        f"{limits.max_tokens}. Raise it, or set `excess_length_strategy` to drop or truncate."
    )


def _keep(
    batch: TokenBatch,
    places: NDArray[np.int64],
    encoded: EncodedRows,
    limits: Limits,
    tally: Tally,
) -> NDArray[np.bool_]:
    """Say which examples stay; count each of the others under the first reason that applies."""
    reasons = {
        f"longer than {limits.max_tokens} tokens": batch.lengths > limits.max_tokens,
        f"shorter than {limits.min_tokens} tokens": batch.lengths < limits.min_tokens,
        "no token": batch.lengths == 0,
        "no trained token": batch.trained() == 0,
    }
    is_piece = np.bincount(places, minlength=len(encoded.origins))[places] > 1
    kept = np.ones(len(places), dtype=np.bool_)
    for reason, applies in reasons.items():
        for example in np.flatnonzero(applies & kept).tolist():
            origin = encoded.origins[places[example]]
            said = f"{reason} (piece of a cut document)" if is_piece[example] else reason
            tally.drop(said, origin.number, origin.place)
        kept &= ~applies
    return kept


def check_counts(counts: DatasetCounts, tally: Tally, options: FormatOptions) -> None:
    """Stop when a dataset cannot be trained on.

    Raises:
        DataError: it has no trained token, or the end of a trained turn never is trained.
    """
    if not counts.trained_tokens:
        raise _untrained(counts)
    if tally.turns and not tally.ended:
        check_ends(options, counts.name)


def _untrained(counts: DatasetCounts) -> DataError:
    reasons = "; ".join(
        f"{dropped.rows} rows: {dropped.reason} (first: {dropped.examples[0]})"
        for dropped in counts.dropped
    )
    return DataError(f"{counts.name}: no trained token in {counts.rows_read} rows. {reasons}.")


def check_ends(options: FormatOptions, name: str) -> None:
    """Refuse conversations in which the end of a trained turn is never trained.

    Raises:
        DataError: it should have been, by `train_on_eos` or `train_on_eot`.
    """
    if "turn" not in (options.train_on_eos, options.train_on_eot):
        return
    raise DataError(
        f"{name}: the chat template never ends a trained turn with an end-of-turn token, so the "
        f"model would not learn to stop (end tokens looked for: {', '.join(options.end_tokens)}). "
        "Set `eot_tokens` to what ends a turn, another `chat_template`, or `train_on_eos: none`."
    )
