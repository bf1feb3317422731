"""What happened to the rows of each dataset: read, dropped and why, cut, trained, repeated."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0, 50, 90, 99, 100)

LISTED = 1000
"""Most dropped rows listed by place for one reason; the shards of the cache list them all."""


@dataclass(frozen=True)
class DroppedRows:
    """Rows left out for one reason; `examples` are the places of the first few."""

    reason: str
    rows: int
    first_row: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mixed:
    """What a dataset contributes to the first epoch of a mixture; shares are of all datasets."""

    examples: int
    tokens: int
    row_share: float
    token_share: float


@dataclass(frozen=True)
class DatasetCounts:
    """One dataset's rows and tokens; always shown."""

    name: str
    rows_read: int
    dropped: tuple[DroppedRows, ...]
    rows_truncated: int
    first_truncated_row: int | None
    rows_cut: int
    """Documents cut into several examples, nothing lost."""
    examples: int
    tokens: int
    trained_tokens: int
    length_percentiles: Mapping[int, int]
    """Percentile → tokens."""
    duplicates: int = 0
    """Examples left out because an equal one occurred before, or is held out."""
    mixed: Mixed | None = None
    """None where every example stands once in every epoch."""
    system: str | None = None
    """The system message with which the conversations begin, where it is the same one."""

    @property
    def rows_dropped(self) -> int:
        """Rows left out, for whatever reason."""
        return sum(dropped.rows for dropped in self.dropped)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DatasetCounts":
        """Read back what `dataclasses.asdict` wrote as JSON."""
        dropped = tuple(
            DroppedRows(**{**entry, "examples": tuple(entry["examples"])})
            for entry in values["dropped"]
        )
        percentiles = {int(key): value for key, value in values["length_percentiles"].items()}
        mixed = Mixed(**values["mixed"]) if values.get("mixed") else None
        return cls(
            **{**values, "dropped": dropped, "length_percentiles": percentiles, "mixed": mixed}
        )


@dataclass
class Tally:
    """Counts the rows of a dataset, or of a part of it, while they are prepared."""

    rows_read: int = 0
    trained_tokens: int = 0
    turns: int = 0
    """Trained turns of conversations."""
    ended: int = 0
    """Those whose end token is trained too."""
    truncated: list[int] = field(default_factory=list)
    """Numbers of the rows whose end was cut off."""
    cut: list[int] = field(default_factory=list)
    """Numbers of the documents cut into several examples."""
    dropped: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Reason → number and place of every row left out for it."""

    def drop(self, reason: str, number: int, place: str) -> None:
        """Count a row that is left out."""
        self.dropped.setdefault(reason, []).append((number, place))

    def truncate(self, numbers: NDArray[np.int64]) -> None:
        """Count rows whose end was cut off."""
        self.truncated += numbers.tolist()

    def cut_up(self, numbers: NDArray[np.int64]) -> None:
        """Count documents that became several examples."""
        self.cut += numbers.tolist()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Tally":
        """Read back what `as_dict` gave."""
        dropped = {
            reason: [(number, place) for number, place in rows]
            for reason, rows in values["dropped"].items()
        }
        return cls(**{**values, "dropped": dropped})

    @classmethod
    def together(cls, parts: Iterable["Tally"]) -> "Tally":
        """Return the counts of several parts, in their order."""
        whole = cls()
        for part in parts:
            whole.rows_read += part.rows_read
            whole.trained_tokens += part.trained_tokens
            whole.turns += part.turns
            whole.ended += part.ended
            whole.truncated += part.truncated
            whole.cut += part.cut
            for reason, rows in part.dropped.items():
                whole.dropped.setdefault(reason, []).extend(rows)
        return whole

    def total(self, name: str, lengths: NDArray[np.int32]) -> DatasetCounts:
        """Return the counts of a whole dataset whose examples have these lengths."""
        return DatasetCounts(
            name=name,
            rows_read=self.rows_read,
            dropped=tuple(_listed(reason, rows) for reason, rows in self.dropped.items()),
            rows_truncated=len(self.truncated),
            first_truncated_row=min(self.truncated, default=None),
            rows_cut=len(self.cut),
            examples=len(lengths),
            tokens=int(lengths.sum(dtype=np.int64)),
            trained_tokens=self.trained_tokens,
            length_percentiles=_percentiles(lengths),
        )


def _listed(reason: str, rows: Sequence[tuple[int, str]]) -> DroppedRows:
    rows = sorted(rows, key=lambda row: row[0])
    return DroppedRows(reason, len(rows), rows[0][0], tuple(place for _, place in rows[:LISTED]))


def _percentiles(lengths: NDArray[np.int32]) -> dict[int, int]:
    if not len(lengths):
        return {}
    values = np.percentile(lengths, PERCENTILES, method="nearest")
    return {place: int(value) for place, value in zip(PERCENTILES, values, strict=True)}
