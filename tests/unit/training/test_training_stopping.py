import dataclasses
import errno
import math

import pytest
import torch

from newtune.errors import TrainingError
from newtune.training.metrics import MetricsFile
from newtune.training.stopping import memory_advice, require_finite
from runs import ListedBatches, TinyRun, packed, plain_loss_sum


def spoiled(at, *, value):
    """The plain loss, spoiled at its n-th call."""
    calls = iter(range(1_000))

    def loss_sum(model, batch):
        total, count = plain_loss_sum(model, batch)
        return (total * value if next(calls) == at else total), count

    return loss_sum


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_at_its_step_and_names_its_rows(tmp_path, value):
    # call 7 (from 0) is micro-batch 2 of step 4; micro-batch i holds examples 2i and 2i + 1
    run = TinyRun(
        tmp_path,
        steps=6,
        accumulation=2,
        loss_sum=spoiled(7, value=value),
        save={"at_steps": frozenset({2})},
    )
    trainer = run.trainer()
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "step 4" in message
    assert "micro-batch 2 of 2" in message
    assert "rows: rows.jsonl, row 14; rows.jsonl, row 15. " in message
    assert "checkpoint-2 is kept" in message
    assert trainer.state.global_step == 3
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert sorted(run.losses()) == [1, 2, 3]


def test_a_non_finite_gradient_names_all_rows_of_the_step(tmp_path):
    run = TinyRun(tmp_path, steps=2, accumulation=2)
    trainer = run.trainer()
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"step 1: the gradient .* row 0; .*row 3\."):
        trainer.train()


def test_loss_scaling_may_have_infinite_gradients():
    require_finite(
        [1.0], math.inf, step=1, rows_of=lambda _: ["a.jsonl, row 1"], kept="", gradient_scaled=True
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError("no more"),
    ],
)
def test_out_of_memory_says_what_to_change(tmp_path, error):
    def loss_sum(model, batch):
        raise error

    run = TinyRun(tmp_path, rows=2, accumulation=2, loss_sum=loss_sum)
    with pytest.raises(TrainingError) as caught:
        run.trainer().train()
    lines = str(caught.value).splitlines()
    assert "step 1: out of memory while training" in lines[0]
    assert lines[2].startswith("  1. adapter: lora")
    assert lines[3].startswith("  2. micro_batch_size: 1 with gradient_accumulation_steps: 4")


def test_out_of_memory_while_evaluating_is_told_apart(tmp_path):
    def loss_sum(model, batch):
        if not model.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain_loss_sum(model, batch)

    run = TinyRun(
        tmp_path,
        loss_sum=loss_sum,
        evaluation_batches=packed(1),
        evaluation={"at_steps": frozenset({2}), "rows_per_device": 4},
    )
    with pytest.raises(TrainingError, match=r"step 2: out of memory while evaluating"):
        run.trainer().train()


def test_other_runtime_errors_stay_what_they_are(tmp_path):
    def loss_sum(model, batch):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        TinyRun(tmp_path, loss_sum=loss_sum).trainer().train()


def test_advice_leaves_out_what_is_done_already(tmp_path):
    plan = TinyRun(tmp_path, lora=True).plan()
    model = dataclasses.replace(plan.model, gradient_checkpointing=True)
    advice = memory_advice(dataclasses.replace(plan, model=model), "training")
    assert not any("checkpointing" in text or "adapter: lora" in text for text in advice)
    assert any("bf16" in text for text in advice)


def test_the_watchdog_stops_a_run_that_does_not_learn(tmp_path):
    run = TinyRun(
        tmp_path,
        steps=5,
        training={"loss_watchdog_threshold": 1.0, "loss_watchdog_patience": 2},
    )
    with pytest.raises(TrainingError, match=r"step 2: the loss .* for 2 steps"):
        run.trainer().train()


def test_a_loss_that_counts_other_tokens_than_the_batches_is_a_bug(tmp_path):
    def loss_sum(model, batch):
        total, count = plain_loss_sum(model, batch)
        return total, count + 1

    with pytest.raises(RuntimeError, match="trained tokens"):
        TinyRun(tmp_path, loss_sum=loss_sum).trainer().train()


def test_noise_hooks_are_gone_after_a_failure(tmp_path):
    run = TinyRun(
        tmp_path, loss_sum=spoiled(1, value=math.nan), training={"neftune_noise_alpha": 5.0}
    )
    trainer = run.trainer()
    with pytest.raises(TrainingError):
        trainer.train()
    assert not trainer.model.get_input_embeddings()._forward_hooks


def test_batches_must_fill_the_run(tmp_path):
    with pytest.raises(ValueError, match="1 micro-batches for a run of 4"):
        TinyRun(tmp_path, train=ListedBatches([[[0]]])).trainer()


def test_a_disk_that_is_too_full_for_a_line_of_metrics(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsFile, "on_log", full)
    with pytest.raises(TrainingError, match=r"step 1: the disk is full.*--resume"):
        TinyRun(tmp_path).trainer().train()
