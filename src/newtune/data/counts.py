"""What happened to the rows of each dataset: read, dropped and why, cut, trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0, 50, 90, 99, 100)


@dataclass(frozen=True)
class DroppedRows:
    """Rows left out for one reason; `examples` are the places of the first few."""

    reason: str
    rows: int
    first_row: int
    examples: tuple[str, ...] = ()


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
        return cls(**{**values, "dropped": dropped, "length_percentiles": percentiles})


LISTED = 1000
"""Most dropped rows listed by place for one reason."""


@dataclass
class Tally:
    """Counts one dataset while it is prepared."""

    name: str
    rows_read: int = 0
    rows_truncated: int = 0
    first_truncated_row: int | None = None
    rows_cut: int = 0
    trained_tokens: int = 0
    lengths: list[NDArray[np.int32]] = field(default_factory=list)
    dropped: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    dropped_rows: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, number: int, place: str) -> None:
        """Count a row that is left out."""
        self.dropped_rows[reason] = self.dropped_rows.get(reason, 0) + 1
        listed = self.dropped.setdefault(reason, [])
        if len(listed) < LISTED:
            listed.append((number, place))

    def truncate(self, numbers: NDArray[np.int64]) -> None:
        """Count rows whose end was cut off."""
        self.rows_truncated += len(numbers)
        if len(numbers) and self.first_truncated_row is None:
            self.first_truncated_row = int(numbers[0])

    def total(self) -> DatasetCounts:
        """Return the counts of the whole dataset."""
        lengths = np.concatenate(self.lengths) if self.lengths else np.empty(0, dtype=np.int32)
        return DatasetCounts(
            name=self.name,
            rows_read=self.rows_read,
            dropped=tuple(
                DroppedRows(
                    reason, self.dropped_rows[reason], rows[0][0], tuple(row[1] for row in rows)
                )
                for reason, rows in self.dropped.items()
            ),
            rows_truncated=self.rows_truncated,
            first_truncated_row=self.first_truncated_row,
            rows_cut=self.rows_cut,
            examples=len(lengths),
            tokens=int(lengths.sum(dtype=np.int64)),
            trained_tokens=self.trained_tokens,
            length_percentiles=_percentiles(lengths),
        )


def _percentiles(lengths: NDArray[np.int32]) -> dict[int, int]:
    if not len(lengths):
        return {}
    values = np.percentile(lengths, PERCENTILES, method="nearest")
    return {place: int(value) for place, value in zip(PERCENTILES, values, strict=True)}
