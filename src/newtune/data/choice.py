"""Which prepared examples are trained and which held out, and in what order; all by a seed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from newtune.data.store import ExampleStore
from newtune.errors import DataError

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Which examples are trained and which held out, and in what order; all by `seed`."""

    seed: int
    held_out: float
    """Above 1 rows, below 1 a share, 0 none."""
    shuffle: bool = True
    shuffle_first: bool = False
    """Each dataset by itself."""
    deduplicate: bool = False
    shards: int | None = None
    shard: int = 0


@dataclass(frozen=True)
class Chosen:
    """Places of the examples in their stores, in their order."""

    trained: Places
    held_out: Places
    """Places among the training datasets' examples."""
    tests: Places
    """Places among the examples of datasets that are held out whole."""
    duplicates: Mapping[int, int] = field(default_factory=dict)
    """Dataset → examples left out because an equal one occurred before."""


def choose_examples(store: ExampleStore, choice: Choice, tests: ExampleStore) -> Chosen:
    """Choose among the examples of the training datasets, and of those held out whole.

    Held out are whole rows: the pieces of one document never stand on both sides. With
    deduplication no example stands twice, and none that `tests` holds is trained.

    Raises:
        DataError: nothing would be left to train on.
    """
    random = np.random.default_rng(choice.seed)
    places, test_places = np.arange(len(store)), np.arange(len(tests))
    datasets, rows = store.origins()
    duplicates: dict[int, int] = {}
    if choice.deduplicate:
        seen: set[bytes] = set()
        test_places = _first_of_equals(tests, seen, duplicates)
        places = _first_of_equals(store, seen, duplicates)
    if choice.shuffle_first:
        parts = [places[datasets[places] == number] for number in np.unique(datasets)]
        places = np.concatenate([random.permutation(part) for part in parts])
    if choice.shuffle:
        places = random.permutation(places)
    if choice.shards:
        places = places[choice.shard :: choice.shards]
    held_out = np.empty(0, dtype=np.int64)
    if choice.held_out:
        row_of = datasets[places].astype(np.int64) * (int(rows.max()) + 1) + rows[places]
        is_held_out = _held_out_rows(row_of, choice)
        places, held_out = places[~is_held_out], places[is_held_out]
    return Chosen(places, held_out, test_places, duplicates)


def _held_out_rows(row_of: Places, choice: Choice) -> NDArray[np.bool_]:
    """Say of each example whether its row, which it may share with others, is held out."""
    distinct = np.unique(row_of)
    wanted = choice.held_out * (len(distinct) if choice.held_out < 1 else 1)
    count = max(1, round(wanted))
    if count >= len(distinct):
        raise DataError(
            f"`val_set_size: {choice.held_out}` would hold out all {len(distinct)} rows and leave "
            "none to train on."
        )
    chosen = np.random.default_rng((choice.seed, 1)).permutation(distinct)[:count]
    return np.isin(row_of, chosen)


def _first_of_equals(store: ExampleStore, seen: set[bytes], duplicates: dict[int, int]) -> Places:
    """Return the places of examples that are not in `seen`; enter them, count the others."""
    is_first = np.empty(len(store), dtype=np.bool_)
    for place, example in enumerate(store.stored()):
        digest = hashlib.blake2b(example.input_ids.data, digest_size=16)
        digest.update(example.labels.data)
        before = len(seen)
        seen.add(digest.digest())
        is_first[place] = len(seen) > before
    numbers, counts = np.unique(store.datasets()[~is_first], return_counts=True)
    duplicates.update(zip(numbers.tolist(), counts.tolist(), strict=True))
    return np.flatnonzero(is_first)
