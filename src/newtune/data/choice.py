"""Which prepared examples are trained and which held out, and in what order; all by a seed."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from newtune.data.store import ExampleStore
from newtune.errors import DataError
from newtune.logs import logger


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


def choose_examples(
    store: ExampleStore, choice: Choice, tests: ExampleStore | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the trained and of the held-out examples, in their order.

    Held out are whole rows: the pieces of one document never stand on both sides. `tests` are
    examples that are held out already; with deduplication none of them is trained.

    Raises:
        DataError: nothing would be left to train on.
    """
    random = np.random.default_rng(choice.seed)
    places = np.arange(len(store))
    datasets, rows = store.origins()
    if choice.deduplicate:
        places = _first_of_equals(store, tests)
    if choice.shuffle_first:
        parts = [places[datasets[places] == number] for number in np.unique(datasets)]
        places = np.concatenate([random.permutation(part) for part in parts])
    if choice.shuffle:
        places = random.permutation(places)
    if choice.shards:
        places = places[choice.shard :: choice.shards]
    if not choice.held_out:
        return places, np.empty(0, dtype=np.int64)
    row_of = datasets[places].astype(np.int64) * (int(rows.max()) + 1) + rows[places]
    distinct = np.unique(row_of)
    wanted = choice.held_out * (len(distinct) if choice.held_out < 1 else 1)
    count = max(1, round(wanted))
    if count >= len(distinct):
        raise DataError(
            f"`val_set_size: {choice.held_out}` would hold out all {len(distinct)} rows and leave "
            "none to train on."
        )
    chosen = np.random.default_rng((choice.seed, 1)).permutation(distinct)[:count]
    is_held_out = np.isin(row_of, chosen)
    return places[~is_held_out], places[is_held_out]


def _first_of_equals(store: ExampleStore, tests: ExampleStore | None) -> NDArray[np.int64]:
    seen = {_digest(tests, index) for index in range(len(tests))} if tests is not None else set()
    kept = []
    for index in range(len(store)):
        digest = _digest(store, index)
        if digest not in seen:
            seen.add(digest)
            kept.append(index)
    if len(kept) < len(store):
        logger.info("Left out %d examples that occurred before.", len(store) - len(kept))
    return np.array(kept, dtype=np.int64)


def _digest(store: ExampleStore, index: int) -> bytes:
    example = store[index]
    digest = hashlib.blake2b(example.input_ids.tobytes(), digest_size=16)
    digest.update(example.labels.tobytes())
    return digest.digest()
