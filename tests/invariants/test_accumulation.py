"""However a step is cut into micro-batches, the update is the same."""

import pytest

from newtune.model.head import compute_loss_sum
from runs import ListedBatches, TinyRun, assert_same, plain_loss_sum, weights

NUMBERS = [[n, n + 1] for n in range(0, 16, 2)]  # eight packs: two steps of four


def cut(rows: int) -> ListedBatches:
    return ListedBatches([NUMBERS[i : i + rows] for i in range(0, len(NUMBERS), rows)])


@pytest.mark.parametrize("lora", [False, True])
def test_four_rows_once_equal_two_twice_equal_one_four_times(tmp_path, lora):
    results, losses = [], []
    for rows in (1, 2, 4):
        run = TinyRun(
            tmp_path / str(rows),
            steps=2,
            rows=rows,
            accumulation=4 // rows,
            lora=lora,
            train=cut(rows),
            optimizer={"name": "sgd", "learning_rate": 0.5},
        )
        trainer = run.trainer()
        trainer.train()
        results.append(weights(trainer.model))
        losses.append(list(run.losses().values()))
    assert_same(results[0], results[1], atol=2e-6, rtol=1e-5)
    assert_same(results[0], results[2], atol=2e-6, rtol=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)


def test_micro_batches_without_trained_tokens_change_nothing(tmp_path):
    filled = ListedBatches([NUMBERS[0:1], NUMBERS[1:2], [], []])
    runs = [
        TinyRun(tmp_path / "short", steps=1, accumulation=2, train=cut_first(2)),
        TinyRun(tmp_path / "filled", steps=1, accumulation=4, train=filled),
    ]
    results = []
    for run in runs:
        trainer = run.trainer()
        trainer.train()
        results.append(weights(trainer.model))
    assert_same(results[0], results[1])
    assert runs[0].losses() == runs[1].losses()


def cut_first(count: int) -> ListedBatches:
    return ListedBatches([[pack] for pack in NUMBERS[:count]])


def test_the_fused_loss_trains_as_the_plain_one(tmp_path):
    results = []
    for loss_sum in (compute_loss_sum, plain_loss_sum):
        run = TinyRun(tmp_path, steps=2, accumulation=2, loss_sum=loss_sum)
        trainer = run.trainer()
        trainer.train()
        results.append((run.losses(), weights(trainer.model)))
    (losses, fused), (plain_losses, plain) = results
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    assert_same(fused, plain, atol=1e-4, rtol=1e-3)
