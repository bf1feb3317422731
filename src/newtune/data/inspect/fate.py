"""What became of a row after it was read: trained, held out, dropped, or left out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from newtune.data.inspect.rows import RowView
from newtune.data.prepare import PreparedData
from newtune.data.store import ExampleStore


def fate_of(view: RowView, data: PreparedData) -> str:
    """Say what became of a row, and where its examples are."""
    if not view.chosen:
        return "not read: `split` or `shards` leaves it out"
    trained = _places(data.train, view)
    if len(trained):
        return f"trained: {_numbers(trained, len(data.train))}, {_sequence_of(data, trained)}"
    held_out = _places(data.evaluation, view) if data.evaluation else trained
    if data.evaluation and len(held_out):
        return f"held out: {_numbers(held_out, len(data.evaluation))}"
    if view.dropped:
        return f"dropped: {view.dropped}"
    return (
        "left out: an equal row came before (`dataset_exact_deduplication`), or it is in another "
        "piece of the data (`dataset_shard_idx`)"
    )


def fate_in_stream(view: RowView, *, held_out: bool) -> str:
    """Say what becomes of a row that is read while the run goes on."""
    if not view.chosen:
        return "not read: `split`, `shards` or `skip` leaves it out"
    if view.dropped:
        return f"dropped: {view.dropped}"
    return "held out" if held_out else "trained when the stream comes to it"


def _places(store: ExampleStore, view: RowView) -> NDArray[np.int64]:
    datasets, rows = store.origins()
    return np.flatnonzero((datasets == view.dataset) & (rows == view.number))


def _numbers(places: Sequence[int] | NDArray[np.int64], of: int) -> str:
    shown = ", ".join(f"{place + 1:,}" for place in places[:5]) + ", ..." * (len(places) > 5)
    return f"example{'s' if len(places) > 1 else ''} {shown} of {of:,}"


def _sequence_of(data: PreparedData, places: NDArray[np.int64]) -> str:
    """Say where the first of these examples stands in the first epoch."""
    sequences = data.sequences(0)
    holding = (n for n, sequence in enumerate(sequences, 1) if places[0] in sequence)
    number = next(holding, None)
    if number is None:
        return "not in the first epoch, which holds a part of its dataset (`weight`)"
    unit = "in pack" if data.packing.packed else "number"
    return f"{unit} {number:,} of {len(sequences):,} of the first epoch"
