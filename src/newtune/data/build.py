"""Rows of one dataset → examples in a store, a chunk at a time, everything counted."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newtune.data.counts import DatasetCounts, Tally
from newtune.data.formats import Format
from newtune.data.rendered import Drop, Rendered, Tokens
from newtune.data.sources import NumberedRow, Rows
from newtune.data.store import ExampleWriter
from newtune.data.tokenize import TextEncoder, TokenBatch, as_batch
from newtune.errors import DataError

Excess = Literal["drop", "truncate", "raise"]


@dataclass(frozen=True)
class Limits:
    """How long an example may be, in tokens."""

    max_tokens: int
    excess: Excess = "drop"
    min_tokens: int = 0


class _Encoded(NamedTuple):
    """Examples of a chunk and the rows they came from."""

    batch: TokenBatch
    rows: Sequence[NumberedRow]


def build_examples(
    rows: Rows,
    format: Format,
    encoder: TextEncoder,
    limits: Limits,
    writer: ExampleWriter,
    *,
    name: str,
    dataset: int,
) -> DatasetCounts:
    """Write the examples of one dataset and return what was counted.

    Raises:
        DataError: a row is wrong, nothing can be trained, or the end of a trained turn never is.
    """
    tally = Tally(name)
    for encoded in _encode(rows, format, encoder, tally):
        batch, numbers = _fit(encoded, format, limits, tally)
        tally.lengths.append(batch.lengths)
        tally.trained_tokens += int(batch.trained().sum())
        if len(numbers):
            writer.write(batch, dataset=dataset, rows=numbers)
    counts = tally.total()
    _check_trained(counts)
    _check_ends(format, name)
    return counts


def _encode(rows: Rows, format: Format, encoder: TextEncoder, tally: Tally) -> Iterator[_Encoded]:
    """Render the next chunk while the tokenizer, which needs no interpreter lock, does the last."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        waiting: Future[TokenBatch] | None = None
        waiting_rows: list[NumberedRow] = []
        for chunk in rows.chunks():
            tally.rows_read += len(chunk)
            texts, tokens = _read(chunk, format, tally)
            if tokens:
                yield _Encoded(as_batch([row for _, row in tokens]), [row for row, _ in tokens])
            if not texts:
                continue
            future = executor.submit(encoder.encode, [text for _, text in texts])
            if waiting:
                yield _Encoded(waiting.result(), waiting_rows)
            waiting, waiting_rows = future, [row for row, _ in texts]
        if waiting:
            yield _Encoded(waiting.result(), waiting_rows)


def _read(
    chunk: Sequence[NumberedRow], format: Format, tally: Tally
) -> tuple[list[tuple[NumberedRow, Rendered]], list[tuple[NumberedRow, Tokens]]]:
    texts: list[tuple[NumberedRow, Rendered]] = []
    tokens: list[tuple[NumberedRow, Tokens]] = []
    for row in chunk:
        outcome = format.read(row)
        if isinstance(outcome, Drop):
            tally.drop(outcome.reason, row.number, row.place)
        elif isinstance(outcome, Rendered):
            texts.append((row, outcome))
        else:
            tokens.append((row, outcome))
    return texts, tokens


def _fit(
    encoded: _Encoded, format: Format, limits: Limits, tally: Tally
) -> tuple[TokenBatch, NDArray[np.int64]]:
    """Cut, truncate or drop what is too long, and drop what is too short or untrained."""
    batch, rows = encoded
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


def _check_ends(format: Format, name: str) -> None:
    chat = format.chat
    if not chat or not chat.ends.turns or chat.ends.trained:
        return
    if "turn" not in (chat.train_on_eos, chat.train_on_eot):
        return
    raise DataError(
        f"{name}: the chat template never ends a trained turn with an end-of-turn token, so the "
        f"model would not learn to stop (end tokens looked for: {', '.join(chat.end_tokens)}). "
        "Set `eot_tokens` to what ends a turn, another `chat_template`, or `train_on_eos: none`."
    )
