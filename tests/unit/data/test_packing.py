"""Packs hold every example once, never too much, and little air."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newtune.data.packing import (
    PackingOptions,
    epoch_sequences,
    eval_sequences,
    pack_examples,
    packing_efficiency,
)

lengths_up_to_20 = st.lists(st.integers(0, 20), max_size=60)


def as_lists(packs):
    return sorted(sorted(pack.tolist()) for pack in packs)


def test_a_pack_is_filled_by_what_fits_best():
    assert as_lists(pack_examples([4, 3, 2], max_tokens=5)) == [[0], [1, 2]]
    assert as_lists(pack_examples([6, 5, 4, 3, 2], max_tokens=10)) == [[0, 2], [1, 3, 4]]


def test_nothing_makes_no_pack_and_too_long_is_refused():
    assert pack_examples([], max_tokens=5) == []
    with pytest.raises(ValueError, match="example 1 has 6 tokens, a pack 5"):
        pack_examples([1, 6], max_tokens=5)


@given(
    lengths=lengths_up_to_20,
    max_examples=st.integers(1, 5),
    group_size=st.integers(1, 70),
    seed=st.integers(0, 9),
    keep_order=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_every_example_once_and_no_pack_too_full(
    lengths, max_examples, group_size, seed, keep_order
):
    packs = pack_examples(
        lengths,
        max_tokens=20,
        max_examples=max_examples,
        group_size=group_size,
        seed=seed,
        keep_order=keep_order,
    )
    placed = [index for pack in packs for index in pack.tolist()]
    assert sorted(placed) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= 20 for pack in packs)
    assert all(1 <= len(pack) <= max_examples for pack in packs)
    if keep_order:
        assert placed == sorted(placed)


def best_fit_one_by_one(lengths: list[int], max_tokens: int) -> int:
    """Return the number of packs of textbook best-fit decreasing."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting) if fitting else max_tokens
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return len(rooms)


@given(lengths=st.lists(st.integers(1, 50), max_size=80))
@settings(max_examples=200, deadline=None)
def test_as_many_packs_as_best_fit_one_by_one(lengths):
    packs = pack_examples(lengths, max_tokens=50, max_examples=1000)
    assert len(packs) == best_fit_one_by_one(lengths, 50)


def log_normal(median: float, sigma: float) -> np.ndarray:
    lengths = np.random.default_rng(0).lognormal(np.log(median), sigma, 100_000)
    return np.clip(lengths.astype(int), 8, 2048)


def uniform(low: int, high: int) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high + 1, 100_000)


@pytest.mark.parametrize(
    ("lengths", "at_least"),
    [
        (log_normal(120, 0.6), 0.998),
        (log_normal(600 / np.exp(0.18), 0.6), 0.995),
        (uniform(200, 2048), 0.985),
        (uniform(700, 1400), 0.95),
    ],
    ids=["instructions", "chat", "uniform", "hard"],
)
def test_packs_are_nearly_full(lengths, at_least):
    packs = pack_examples(lengths, max_tokens=2048)
    assert packing_efficiency(lengths, len(packs), 2048) >= at_least


def test_the_same_seed_and_epoch_give_the_same_packs_and_others_do_not():
    lengths = uniform(200, 2048)[:200]
    options = PackingOptions(2048, packed=True, seed=3)
    first, again = (epoch_sequences(lengths, options, 0) for _ in range(2))
    other = epoch_sequences(lengths, options, 1)
    assert [pack.tolist() for pack in first] == [pack.tolist() for pack in again]
    assert as_lists(first) != as_lists(other)


def test_unpacked_sequences_are_single_examples_in_a_new_order_each_epoch():
    lengths = uniform(1, 100)[:64]
    orders = [
        [
            int(place)
            for sequence in epoch_sequences(lengths, PackingOptions(100), epoch)
            for place in sequence
        ]
        for epoch in (0, 1)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(64))
    assert orders[0] != orders[1]
    kept = epoch_sequences(lengths, PackingOptions(100, keep_order=True), 5)
    assert [int(sequence[0]) for sequence in kept] == list(range(64))


def test_grouping_by_length_puts_like_beside_like():
    lengths = uniform(1, 1000)[:800]

    def padding(options: PackingOptions) -> int:
        order = np.concatenate(epoch_sequences(lengths, options, 0)).reshape(-1, 8)
        return int((lengths[order].max(axis=1, keepdims=True) - lengths[order]).sum())

    plain, grouped = PackingOptions(1000), PackingOptions(1000, group_by_length=True)
    assert padding(grouped) < padding(plain) / 5


def test_held_out_sequences_keep_their_order_unless_packed():
    lengths = [3, 3, 2]
    assert [s.tolist() for s in eval_sequences(lengths, PackingOptions(5))] == [[0], [1], [2]]
    packed = eval_sequences(lengths, PackingOptions(5, eval_packed=True))
    assert sorted(len(pack) for pack in packed) == [1, 2]
