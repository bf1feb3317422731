"""Datasets stand in an epoch as often as their weights say, every example equally often."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newtune.data.mixing import Mixing, Mixture, repeats_of, training_sequences
from newtune.data.packing import PackingOptions


def mixture(sizes, weights, mixing=None, *, tokens=None, keep_order=False, seed=0):
    """Return the mixture of datasets of so many examples; `tokens` per example, by dataset."""
    datasets = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    lengths = np.repeat(np.array(tokens or [10] * len(sizes), dtype=np.int32), sizes)
    return Mixture.of(
        datasets,
        lengths,
        dict(enumerate(weights)),
        mixing or Mixing(),
        seed=seed,
        keep_order=keep_order,
    )


def test_a_weight_alone_says_how_often_each_example_stands_in_an_epoch():
    mixed = mixture([3, 4, 2], [2, 0.5, None])
    for epoch in range(3):
        used = Counter(mixed.epoch(epoch).tolist())
        assert [used[place] for place in range(3)] == [2, 2, 2]
        assert sum(used[place] for place in range(3, 7)) == 2
        assert [used[place] for place in (7, 8)] == [1, 1]


def test_half_a_dataset_is_another_half_every_epoch():
    mixed = mixture([10], [0.5])
    first, second, third = (set(mixed.epoch(epoch).tolist()) for epoch in range(3))
    assert len(first) == len(second) == 5
    assert first | second == set(range(10))
    assert third not in (first, second)  # the next round is drawn anew


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    weight=st.fractions(Fraction(1, 8), 3, max_denominator=8),
    epochs=st.integers(1, 8),
    by=st.sampled_from(["repeats", "tokens"]),
)
def test_over_the_epochs_every_example_is_used_equally_often(sizes, weight, epochs, by):
    weights = [float(weight), *([1.0] * (len(sizes) - 1))]
    mixed = mixture(sizes, weights, Mixing(by), tokens=[7, 3, 5][: len(sizes)])
    used = Counter(place for epoch in range(epochs) for place in mixed.epoch(epoch).tolist())
    start = 0
    for number, size in enumerate(sizes):
        counts = [used[place] for place in range(start, start + size)]
        assert max(counts) - min(counts) <= 1
        if by == "repeats":
            exact = Fraction(weights[number]).limit_denominator(8) * size * epochs
            assert abs(sum(counts) - exact) <= 1
        start += size


@pytest.mark.parametrize(
    ("by", "exhaust", "expected"),
    [
        # rows: shares 3 : 1 of datasets of 10 and 20 examples
        ("rows", "all", [60, 20]),  # the second is seen whole, the first six times
        ("rows", "first", [10, 10 / 3]),
        # tokens: 10 examples of 4 tokens, 20 of 1: 40 and 20 tokens
        ("tokens", "all", [60 / 4, 20]),
        ("tokens", "first", [10, 40 / 3]),
    ],
)
def test_shares_of_rows_and_tokens(by, exhaust, expected):
    sizes = [10, 20] if by == "rows" else [40, 20]
    repeats = repeats_of([3, 1], sizes, Mixing(by, exhaust))
    assert [float(r) * n for r, n in zip(repeats, [10, 20], strict=True)] == pytest.approx(expected)
    mixed = mixture([10, 20], [3, 1], Mixing(by, exhaust), tokens=[4, 1])
    realised = mixed.realised()
    examples = [realised[0].examples, realised[1].examples]
    assert np.abs(np.array(examples) - expected).max() <= 1
    share = realised[0].row_share if by == "rows" else realised[0].token_share
    assert share == pytest.approx(0.75, abs=0.05)  # whole examples


def test_temperature_evens_the_sizes_out():
    by_size = repeats_of([None] * 2, [1000, 10], Mixing("rows", temperature=1))
    assert [float(r) for r in by_size] == [1, 1]
    half = repeats_of([None] * 2, [1000, 10], Mixing("rows", temperature=2))
    # shares √1000 : √10 = 10 : 1; the larger stands once, the smaller 1000 / 10 rows = 10 times
    assert [float(r) for r in half] == pytest.approx([1, 10])
    alike = repeats_of([None] * 2, [1000, 10], Mixing("rows", temperature=1e9))
    assert [float(r) for r in alike] == pytest.approx([1, 100], rel=1e-6)


def test_a_kept_order_goes_dataset_by_dataset_round_by_round():
    mixed = mixture([3, 2], [1.5, 2], keep_order=True)
    assert mixed.epoch(0).tolist() == [0, 1, 2, 0, 1, 3, 4, 3, 4]
    assert mixed.epoch(1).tolist() == [2, 0, 1, 2, 3, 4, 3, 4]


def test_the_draw_is_a_function_of_seed_and_epoch():
    def places(seed, epoch):
        return mixture([30, 30], [0.5, 2], seed=seed).epoch(epoch).tolist()

    assert places(1, 3) == places(1, 3)
    assert places(1, 3) != places(1, 4)
    assert places(1, 3) != places(2, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_the_sequences_of_an_epoch_hold_exactly_the_mixture(packed):
    mixed = mixture([20, 7], [0.5, 3])
    packing = PackingOptions(35, packed=packed, seed=4)
    sequences = training_sequences(mixed.lengths, packing, mixed, 2)
    placed = sorted(place for sequence in sequences for place in sequence.tolist())
    assert placed == sorted(mixed.epoch(2).tolist())
    if packed:
        assert all(mixed.lengths[sequence].sum() <= 35 for sequence in sequences)


def test_datasets_of_which_nothing_is_left_take_no_part():
    repeats = repeats_of([1, 1], [0, 50], Mixing("rows"))
    assert [float(r) for r in repeats] == [0, 1]
