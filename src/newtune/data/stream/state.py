"""Where a stream stands and what it has read so far: plain values that a checkpoint keeps."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from newtune.data.counts import DatasetCounts, DroppedRows
from newtune.types import IGNORE_INDEX, Example

LISTED = 5
"""Most dropped rows listed by place for one reason; a stream has no end, its counts have."""

Anchor = Mapping[str, Any]
"""A short cut to a row: `row` is a position, the rest is what its source needs to begin there."""


@dataclass(frozen=True)
class Position:
    """The place of a source: how often it was read to its end, and how many rows since."""

    passes: int = 0
    row: int = 0
    """Rows before the next one, counted in the file or the hub's split."""
    anchor: Anchor | None = field(default=None, compare=False)


class StreamRow(NamedTuple):
    """What became of one row: its examples, or why it was left out."""

    number: int
    examples: Sequence[Example]
    drops: Sequence[tuple[str, str]] = ()
    """(reason, place)."""
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of its examples."""
        return sum(len(example.input_ids) for example in self.examples)


class Carried(NamedTuple):
    """A piece of a joined document that did not fill a row yet, and where it came from."""

    source: int
    row: int
    ids: tuple[int, ...]


@dataclass
class Dropped:
    """Rows of one source left out for one reason."""

    rows: int
    first_row: int
    places: list[str]


@dataclass
class SourceCounts:
    """What happened to the rows of one source since the run began."""

    rows_read: int = 0
    rows_truncated: int = 0
    first_truncated_row: int | None = None
    rows_cut: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)

    def add(self, row: StreamRow) -> None:
        """Count a row, and what of it is left out."""
        self.rows_read += 1
        self.examples += len(row.examples)
        self.tokens += row.tokens
        self.trained_tokens += sum(
            int((example.labels != IGNORE_INDEX).sum()) for example in row.examples
        )
        self.rows_cut += len(row.examples) > 1
        if row.truncated:
            self.rows_truncated += 1
            self.first_truncated_row = self.first_truncated_row or row.number
        for reason, place in row.drops:
            entry = self.dropped.setdefault(reason, Dropped(0, row.number, []))
            entry.rows += 1
            if len(entry.places) < LISTED:
                entry.places.append(place)

    @property
    def rows_dropped(self) -> int:
        """Rows left out, for whatever reason."""
        return sum(entry.rows for entry in self.dropped.values())

    def as_counts(self, name: str) -> DatasetCounts:
        """Return the counts in the form that prepared data has; lengths are not collected."""
        return DatasetCounts(
            name=name,
            rows_read=self.rows_read,
            dropped=tuple(
                DroppedRows(reason, entry.rows, entry.first_row, tuple(entry.places))
                for reason, entry in self.dropped.items()
            ),
            rows_truncated=self.rows_truncated,
            first_truncated_row=self.first_truncated_row,
            rows_cut=self.rows_cut,
            examples=self.examples,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            length_percentiles={},
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SourceCounts":
        """Read back what `dataclasses.asdict` gave."""
        dropped = {reason: Dropped(**entry) for reason, entry in values["dropped"].items()}
        return cls(**{**values, "dropped": dropped})


@dataclass(frozen=True)
class StreamState:
    """The place of a whole stream between two blocks; what follows is a function of it alone."""

    positions: tuple[Position, ...]
    counts: tuple[SourceCounts, ...]
    """Never changed in place: `mutable_counts` gives copies."""
    block: int = 0
    """Blocks before this place; it seeds the draw of the next."""
    carry: tuple[Carried, ...] = ()
    """What is left over of joined documents."""

    @classmethod
    def beginning(cls, sources: int) -> "StreamState":
        """Return the place before the first row of so many sources."""
        return cls((Position(),) * sources, tuple(SourceCounts() for _ in range(sources)))

    def mutable_counts(self) -> list[SourceCounts]:
        """Return copies of the counts, to go on counting."""
        return [copy.deepcopy(counts) for counts in self.counts]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StreamState":
        """Read back what `as_json` gave."""
        return cls(
            positions=tuple(Position(**entry) for entry in values["positions"]),
            counts=tuple(SourceCounts.from_json(entry) for entry in values["counts"]),
            block=values["block"],
            carry=tuple(Carried(source, row, tuple(ids)) for source, row, ids in values["carry"]),
        )


def token_shares(counts: Sequence[SourceCounts]) -> list[float]:
    """Return each source's share of the tokens read so far."""
    total = sum(entry.tokens for entry in counts)
    return [entry.tokens / total if total else 0.0 for entry in counts]
