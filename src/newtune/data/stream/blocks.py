"""A block: the rows of a stretch of the stream, drawn in their order and laid out as sequences.

A block is a function of the place where it begins. So a place is all that a checkpoint needs, and
the next block can be read while this one is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from newtune.data.packing import PackingOptions, epoch_sequences
from newtune.data.stream.encoded import EncodedSource
from newtune.data.stream.mixture import next_source
from newtune.data.stream.state import Carried, StreamState
from newtune.types import IGNORE_INDEX, Example

MOST_TOKENS = 1 << 24
"""A block ends here, however few its examples are: 128 MiB of ids and labels."""

Origin = tuple[int, int]
"""(source, row); sources count from 0, rows from 1."""


class Stopped(Exception):  # noqa: N818 (no error: nobody waits for the block any more)
    """The stream was closed while a block was being read."""


class Laid(NamedTuple):
    """Examples that share a sequence, and the row that each came from.

    Documents made one text have one origin each all the same.
    """

    examples: Sequence[Example]
    origins: Sequence[Origin]


@dataclass(frozen=True)
class BlockOptions:
    """How much of the stream is looked at together, and what is made of it."""

    examples: int
    """A block ends with the row that completes so many examples."""
    packing: PackingOptions
    join: bool = False
    """Lay documents end to end and cut them where a row is full."""
    isolated: bool = True
    """The examples of a sequence do not see each other."""


@dataclass(frozen=True)
class Block:
    """The sequences of one stretch of the stream."""

    start: StreamState
    end: StreamState
    sequences: Sequence[Laid]


class BlockReader:
    """Reads blocks; the same place always gives the same block."""

    def __init__(
        self,
        sources: Sequence[EncodedSource],
        weights: Sequence[float],
        options: BlockOptions,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sources = sources
        self.weights = weights
        self.options = options
        self.stopped = stopped

    def read(self, start: StreamState) -> Block:
        """Return the block that begins at a place.

        Raises:
            DataError: a row is wrong, or a source cannot be read.
            Stopped: nobody wants it any more.
        """
        counts = start.mutable_counts()
        positions = list(start.positions)
        laid: list[tuple[Example, Origin]] = []
        tokens = 0
        while len(laid) < self.options.examples and tokens < MOST_TOKENS:
            if self.stopped():
                raise Stopped
            source = next_source([count.tokens for count in counts], self.weights)
            row, positions[source] = self.sources[source].take(positions[source])
            counts[source].add(row)
            tokens += row.tokens
            laid += [(example, (source, row.number)) for example in row.examples]
        sequences, carry = self._arrange(laid, start)
        end = StreamState(tuple(positions), tuple(counts), start.block + 1, carry)
        return Block(start, end, sequences)

    def _arrange(
        self, laid: Sequence[tuple[Example, Origin]], start: StreamState
    ) -> tuple[list[Laid], tuple[Carried, ...]]:
        packing, carry = self.options.packing, start.carry
        if self.options.join:
            order = _drawn(len(laid), packing, start.block)
            documents = [laid[place] for place in order]
            sequences, carry = join_documents(documents, carry, packing.sequence_len)
        else:
            lengths = np.array([len(example.input_ids) for example, _ in laid], dtype=np.int32)
            sequences = [
                Laid([laid[place][0] for place in places], [laid[place][1] for place in places])
                for places in epoch_sequences(lengths, packing, start.block)
            ]
        if not self.options.isolated:
            sequences = [Laid([as_one(entry.examples)], entry.origins) for entry in sequences]
        return sequences, carry


def _drawn(documents: int, packing: PackingOptions, block: int) -> list[int]:
    if packing.keep_order:
        return list(range(documents))
    drawn: list[int] = np.random.default_rng((packing.seed, block)).permutation(documents).tolist()
    return drawn


def join_documents(
    documents: Sequence[tuple[Example, Origin]], carry: Sequence[Carried], length: int
) -> tuple[list[Laid], tuple[Carried, ...]]:
    """Return rows of exactly `length` tokens, and what is left over for the next block.

    What is left over from the block before, `carry`, comes first. A piece of a document is an
    example of its own, so its first token is not trained.

        documents [a a a a a] [b b] [c c], length 4 → [a a a a] [a | b b | c], left over [c]
    """
    whole = [(np.array(left.ids, dtype=np.int32), (left.source, left.row)) for left in carry]
    whole += [(example.input_ids, origin) for example, origin in documents]
    rows: list[Laid] = []
    pieces: list[tuple[Example, Origin]] = []
    room = length
    for ids, origin in whole:
        start = 0
        while start < len(ids):
            piece = ids[start : start + room]
            pieces.append((_all_trained(piece), origin))
            start, room = start + len(piece), room - len(piece)
            if not room:
                rows.append(Laid([entry[0] for entry in pieces], [entry[1] for entry in pieces]))
                pieces, room = [], length
    return rows, tuple(
        Carried(*origin, tuple(example.input_ids.tolist())) for example, origin in pieces
    )


def _all_trained(ids: "np.ndarray[tuple[int], np.dtype[np.int32]]") -> Example:
    labels = ids.copy()
    labels[:1] = IGNORE_INDEX
    return Example(ids, labels)


def as_one(examples: Sequence[Example]) -> Example:
    """Return texts as one example: each sees those before it, and its first token is trained."""
    return _all_trained(np.concatenate([example.input_ids for example in examples]))
