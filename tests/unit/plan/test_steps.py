"""Batch arithmetic, steps and cadence, each against numbers worked out by hand."""

import pytest

from newtune.plan.steps import (
    cadence,
    epoch_ends,
    resolve_batch_size,
    resolve_warmup,
    steps_of_epochs,
)


@pytest.mark.parametrize(
    ("micro", "accumulation", "total", "world", "expected"),
    [
        (2, 4, None, 1, (2, 4)),
        (2, None, None, 1, (2, 1)),
        (2, None, 16, 1, (2, 8)),
        (2, None, 16, 4, (2, 2)),
        (None, 4, 16, 1, (4, 4)),
        (2, 8, 16, 1, (2, 8)),
    ],
)
def test_any_two_of_three_give_the_third(micro, accumulation, total, world, expected):
    batch = resolve_batch_size(micro, accumulation, total, world_size=world)
    assert (batch.rows_per_device, batch.accumulation) == expected


def test_a_batch_size_that_does_not_divide_names_its_neighbours():
    with pytest.raises(ValueError, match=r"batch_size 10 is not a multiple of 4 .* 8 or 12"):
        resolve_batch_size(4, None, 10, world_size=1)


def test_three_that_contradict_are_refused():
    with pytest.raises(ValueError, match=r"= 8, not batch_size 16"):
        resolve_batch_size(2, 4, 16, world_size=1)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [
        (2, None, (3, 3)),
        (1.5, None, (3, 2)),
        (0.3, None, (1,)),
        (1, 7, (3, 3, 1)),
        (4, 2, (2,)),
    ],
)
def test_steps_of_epochs(epochs, max_steps, expected):
    # 10 sequences at 4 per step: 3 steps, the last one filled up
    assert (
        steps_of_epochs(lambda epoch: 10, rows_per_step=4, epochs=epochs, max_steps=max_steps)
        == expected
    )


def test_epochs_that_pack_differently_are_counted_each():
    packs = [8, 9]
    assert steps_of_epochs(packs.__getitem__, rows_per_step=4, epochs=2, max_steps=None) == (2, 3)


@pytest.mark.parametrize(
    ("strategy", "every", "per_epoch", "expected"),
    [
        (None, None, None, {5, 10}),
        ("epoch", None, None, {5, 10}),
        ("no", None, None, set()),
        (None, 4, None, {4, 8}),
        (None, 0.25, None, {3, 6, 9}),
        (None, None, 1, {5, 10}),
        (None, None, 2, {3, 5, 8, 10}),
        ("steps", 5, None, {5, 10}),
    ],
)
def test_cadence(strategy, every, per_epoch, expected):
    assert cadence(strategy, every, per_epoch, (5, 5))[0] == expected


def test_once_per_epoch_also_with_one_epoch():
    assert cadence(None, None, 1, (7,))[0] == {7}


def test_a_cut_off_last_epoch_ends_where_the_run_ends():
    assert epoch_ends((5, 5, 2)) == {5, 10, 12}


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"),
    [(0, None, 0), (7, None, 7), (500, None, 200), (None, 0.05, 10), (None, 0, 0), (None, None, 6)],
)
def test_warmup(steps, ratio, expected):
    assert resolve_warmup(steps, ratio, 200)[0] == expected
