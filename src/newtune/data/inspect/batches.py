"""Micro-batches as the trainer gets them: the collated tensors, read back token by token.

Where examples begin is read off the tensors (`position_ids` restart at 0), not off what was meant
to be put into them; only where an example came from is asked of the store.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from newtune.data.inspect.rows import TokenView
from newtune.data.inspect.token_text import TokenTexts
from newtune.data.inspect.turns import Turn, runs
from newtune.data.stream.blocks import Laid
from newtune.types import Batch


class ExampleOrigin(NamedTuple):
    """Where an example came from: its number among the examples, its dataset and row."""

    example: int | None
    """From 0, in the order of the prepared data; None in a stream."""
    dataset: int
    """From 0."""
    row: int
    """From 1."""
    place: str


Turns = Callable[[int, int, Sequence[int]], Sequence[Turn | None]]
"""(dataset, row, ids of an example) → whose turn each token is."""


class Store(Protocol):
    """What knows where examples came from."""

    def origin(self, index: int) -> tuple[int, int]:
        """Return (dataset, row) of an example."""
        ...


class Batches(Protocol):
    """Numbered micro-batches, and which examples stand in them."""

    @property
    def store(self) -> Store:
        """Where the examples lie."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...

    def sequences_of(self, index: int) -> Sequence[Sequence[int]]:
        """Return the examples of each sequence of micro-batch `index`; none for a filler."""
        ...


@dataclass(frozen=True)
class ExampleView:
    """One stretch of a sequence in which attention stays: an example, or padding."""

    origin: ExampleOrigin | None
    """None: padding, or a filler."""
    pack: int
    """Which of the micro-batch's packs it belongs to, from 0."""
    start: int
    """Its first token's place in the sequence."""
    tokens: Sequence[TokenView]

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(token.trained for token in self.tokens)

    @property
    def turns(self) -> list[tuple[Turn | None, Sequence[TokenView]]]:
        """The tokens, turn by turn."""
        spans = runs([token.turn for token in self.tokens])
        return [(turn, self.tokens[start:end]) for turn, start, end in spans]


@dataclass(frozen=True)
class SequenceView:
    """One row of the tensors."""

    examples: Sequence[ExampleView]

    @property
    def length(self) -> int:
        """Positions, padding included."""
        return sum(len(example.tokens) for example in self.examples)

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(example.trained for example in self.examples)

    @property
    def padding(self) -> int:
        """Positions that hold no example."""
        return sum(len(part.tokens) for part in self.examples if part.origin is None)


@dataclass(frozen=True)
class BatchView:
    """One micro-batch."""

    number: int
    """From 0."""
    sequences: Sequence[SequenceView]
    boundaries: Sequence[int] | None
    """`cu_seq_lens_q`: where attention is cut; None when the tensors carry none."""

    @property
    def examples(self) -> list[ExampleView]:
        """The examples of all its sequences, padding left out."""
        return [part for row in self.sequences for part in row.examples if part.origin]

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and positions of each."""
        return len(self.sequences), self.sequences[0].length

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(row.trained for row in self.sequences)

    @property
    def padding(self) -> int:
        """Positions that hold no example."""
        return sum(row.padding for row in self.sequences)


def origins_of(batches: Batches, index: int, names: Sequence[str]) -> list[list[ExampleOrigin]]:
    """Return where the examples of each pack of a micro-batch came from."""

    def origin(example: int) -> ExampleOrigin:
        dataset, row = batches.store.origin(example)
        return ExampleOrigin(example, dataset, row, f"{names[dataset]}, row {row}")

    return [[origin(int(place)) for place in pack] for pack in batches.sequences_of(index)]


def origins_in_stream(sequences: Sequence[Laid], names: Sequence[str]) -> list[list[ExampleOrigin]]:
    """Return where the examples of the sequences of a stream came from.

    Documents that were made one text are named by the first of them.
    """
    return [
        [
            ExampleOrigin(None, dataset, row, f"{names[dataset]}, row {row}")
            for _, (dataset, row) in zip(laid.examples, laid.origins, strict=False)
        ]
        for laid in sequences
    ]


def view_batch(
    batch: Batch,
    number: int,
    packs: Sequence[Sequence[ExampleOrigin]],
    texts: TokenTexts,
    turns: Turns,
) -> BatchView:
    """Read the tensors of one micro-batch back.

    `packs` says where the examples of each pack came from; packs share one sequence when the
    batch is one row.
    """
    ids, labels = batch["input_ids"].tolist(), batch["labels"].tolist()
    positions = batch["position_ids"].tolist()
    named = [[(number, origin) for origin in pack] for number, pack in enumerate(packs)]
    if len(ids) == 1:
        named = [[entry for pack in named for entry in pack]]
    boundaries = batch.get("cu_seq_lens_q")
    rows = zip(ids, labels, positions, named, strict=True)
    return BatchView(
        number,
        [SequenceView(list(_examples(*row, texts, turns))) for row in rows],
        None if boundaries is None else boundaries.tolist(),
    )


def _examples(
    ids: list[int],
    labels: list[int],
    positions: list[int],
    named: Sequence[tuple[int, ExampleOrigin]],
    texts: TokenTexts,
    turns: Turns,
) -> Iterator[ExampleView]:
    """Yield the stretches of one row of the tensors; what comes after the last name is padding."""
    starts = [place for place, position in enumerate(positions) if position == 0]
    last_pack = named[-1][0] if named else 0
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
        pack, origin = named[number] if number < len(named) else (last_pack, None)
        part = ids[start:end]
        owners = [None] * len(part) if origin is None else turns(origin.dataset, origin.row, part)
        columns = zip(
            part, labels[start:end], positions[start:end], texts.read(part), owners, strict=True
        )
        yield ExampleView(origin, pack, start, tuple(TokenView(*column) for column in columns))
