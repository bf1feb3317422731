"""A run stopped at any step and resumed is, bit for bit, the run that never stopped."""

import os
import signal
import threading

import pytest
from transformers import TrainerCallback

from newtune.errors import Interrupted, TrainingError
from newtune.model.head import compute_loss_sum
from runs import TinyRun, assert_same, packed, weights

STEPS, STOP_AFTER = 6, 3


class Kill(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number, *, step):
        self.number = number
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


def make_run(root, **changes):
    settings = {
        "steps": STEPS,
        "accumulation": 2,
        "dropout": 0.2,
        "evaluation_batches": packed(2, first=500),
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "evaluation": {"at_steps": frozenset({2, 4, 6})},
        "optimizer": {"weight_decay": 0.1},
        "training": {"logging_steps": 2},
    }
    return TinyRun(root, **{**settings, **changes})


def uninterrupted(root, **changes):
    run = make_run(root, **changes)
    trainer = run.trainer()
    trainer.train()
    return run, weights(trainer.model)


def comparable(run):
    varying = {"time", "tokens_per_second", "memory_bytes", "eval_runtime", "train_runtime"}
    lines = [{k: v for k, v in line.items() if k not in varying} for line in run.metrics()]
    return [line for line in lines if line.keys() > {"step", "epoch"}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lora", [False, True])
def test_a_signal_in_the_middle_of_a_step(tmp_path, lora, number):
    whole, expected = uninterrupted(tmp_path / "whole", lora=lora)
    run = make_run(tmp_path / "stopped", lora=lora)
    trainer = run.trainer()
    trainer.add_callback(Kill(number, step=STOP_AFTER))
    with pytest.raises(Interrupted, match=r"newtune train CONFIG --resume"):
        trainer.train()
    assert trainer.state.global_step == STOP_AFTER
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    resumed = run.trainer()
    resumed.train(run.root / f"checkpoint-{STOP_AFTER}")
    assert_same(weights(resumed.model), expected)
    assert comparable(run) == comparable(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "muon"}},
        {"optimizer": {"name": "sgd", "arguments": {"momentum": 0.9}}},
        {"optimizer": {"name": "adafactor"}},
        {"training": {"neftune_noise_alpha": 5.0}},
        {"precision": {"autocast": "bfloat16"}},
        {"training": {"dataloader_workers": 1, "dataloader_prefetch_factor": 2}},
        {"rows": 2, "epochs": (4, 2)},
    ],
    ids=["muon", "sgd", "adafactor", "neftune", "bf16", "workers", "two-epochs"],
)
def test_from_a_planned_checkpoint(tmp_path, changes):
    changes = {"lora": True, **changes}
    _, expected = uninterrupted(tmp_path / "whole", **changes)
    run, _ = uninterrupted(tmp_path / "saved", **changes, save={"at_steps": frozenset({4})})
    resumed = run.trainer()
    resumed.train(run.root / "checkpoint-4")
    assert_same(weights(resumed.model), expected)


def test_a_killed_process_leaves_metrics_that_resuming_cuts_back(tmp_path):
    whole, expected = uninterrupted(tmp_path / "whole", save={"at_steps": frozenset({2})})
    resumed = whole.trainer()
    before = comparable(whole)
    with (whole.root / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    resumed.train(whole.root / "checkpoint-2")
    assert comparable(whole) == before
    assert_same(weights(resumed.model), expected)


def test_a_second_signal_stops_at_once(tmp_path):
    run = make_run(tmp_path)
    trainer = run.trainer()
    trainer.add_callback(Kill(signal.SIGINT, step=2))
    trainer.add_callback(Kill(signal.SIGINT, step=2))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_a_stop_makes_a_full_checkpoint_even_where_weights_only_were_asked_for(tmp_path):
    run = make_run(tmp_path, save={"weights_only": True, "at_steps": frozenset({2})})
    trainer = run.trainer()
    trainer.add_callback(Kill(signal.SIGTERM, step=STOP_AFTER))
    with pytest.raises(Interrupted):
        trainer.train()
    with pytest.raises(TrainingError, match="weights only"):
        run.trainer().train(tmp_path / "checkpoint-2")
    run.trainer().train(tmp_path / "checkpoint-3")


def test_a_signal_in_the_last_step_ends_a_complete_run(tmp_path):
    run = make_run(tmp_path, evaluation={"at_steps": frozenset({2})})
    trainer = run.trainer()
    trainer.add_callback(Kill(signal.SIGTERM, step=STEPS))
    trainer.train()
    assert trainer.state.global_step == STEPS


def test_a_signal_during_the_evaluation_before_the_first_step(tmp_path):
    def loss_sum(model, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss_sum(model, batch)

    run = make_run(tmp_path, evaluation={"at_steps": frozenset({0})}, loss_sum=loss_sum)
    with pytest.raises(Interrupted, match="before the first step"):
        run.trainer().train()


class KillInEvaluation:
    """A loss that sends this process a signal at its n-th batch of evaluations."""

    def __init__(self, batch):
        self.batch = batch
        self.seen = 0

    def __call__(self, model, batch):
        if not model.training:
            self.seen += 1
            if self.seen == self.batch:
                os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss_sum(model, batch)


BEST = {
    "save": {"at_steps": frozenset({2, 4, 6}), "load_best_at_end": True},
    "evaluation": {"at_steps": frozenset({2, 4, 6}), "early_stopping_patience": 2},
    "optimizer": {"learning_rate": 0.1},
}


@pytest.mark.parametrize("batch", [1, 4, 6], ids=["first", "second, within", "last step"])
@pytest.mark.parametrize("changes", [{}, BEST], ids=["plain", "best model"])
def test_a_signal_during_an_evaluation_cuts_it_short(tmp_path, batch, changes):
    whole, expected = uninterrupted(tmp_path / "whole", **changes)
    run = make_run(tmp_path / "stopped", **changes, loss_sum=KillInEvaluation(batch))
    step = 2 * ((batch + 1) // 2)
    trainer = run.trainer()
    with pytest.raises(Interrupted, match=f"after step {step} of 6"):
        trainer.train()
    assert run.loss_sum.seen == batch

    run.loss_sum = KillInEvaluation(1)
    with pytest.raises(Interrupted, match=f"before the first step.*checkpoint-{step}"):
        run.trainer().train(run.root / f"checkpoint-{step}")

    run.loss_sum = compute_loss_sum
    resumed = run.trainer()
    for _ in range(2):  # as if killed before the next checkpoint, the second time
        resumed = run.trainer()
        resumed.train(run.root / f"checkpoint-{step}")
    assert_same(weights(resumed.model), expected)
    assert comparable(run) == comparable(whole)


def test_a_signal_in_a_step_before_an_evaluation_leaves_it_for_the_resumed_run(tmp_path):
    whole, expected = uninterrupted(tmp_path / "whole")
    run = make_run(tmp_path / "stopped")
    trainer = run.trainer()
    trainer.add_callback(Kill(signal.SIGTERM, step=4))
    with pytest.raises(Interrupted):
        trainer.train()
    assert [line["step"] for line in run.metrics() if "eval_loss" in line] == [2]
    resumed = run.trainer()
    resumed.train(run.root / "checkpoint-4")
    assert_same(weights(resumed.model), expected)
    assert comparable(run) == comparable(whole)


def test_an_early_stop_by_the_evaluation_that_was_cut_short(tmp_path):
    def make(root):
        return make_run(
            root,
            evaluation={
                "at_steps": frozenset({2, 4, 6}),
                "early_stopping_patience": 1,
                "early_stopping_threshold": 100.0,
            },
            save={"at_steps": frozenset({2}), "load_best_at_end": True},
        )

    whole = make(tmp_path / "whole")
    complete = whole.trainer()
    complete.train()
    assert complete.state.global_step == 4
    run = make(tmp_path / "stopped")
    run.loss_sum = KillInEvaluation(3)
    with pytest.raises(Interrupted):
        run.trainer().train()
    run.loss_sum = compute_loss_sum
    resumed = run.trainer()
    resumed.train(run.root / "checkpoint-4")
    assert resumed.state.global_step == 4
    assert comparable(run) == comparable(whole)
    assert_same(weights(resumed.model), weights(complete.model))


def test_a_run_in_another_thread_leaves_the_signals_alone(tmp_path):
    trainer = make_run(tmp_path).trainer()
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == STEPS


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    run, expected = uninterrupted(tmp_path, save={"at_steps": frozenset({STEPS})})
    resumed = run.trainer()
    resumed.train(tmp_path / f"checkpoint-{STEPS}")
    assert_same(weights(resumed.model), expected)
    assert sorted(run.losses()) == [2, 4, 6]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    _, expected = uninterrupted(tmp_path / "whole")
    run, _ = uninterrupted(tmp_path / "saved", save={"at_steps": frozenset({2, 4})})
    weights_file = run.root / "checkpoint-4" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-8])
    resumed = run.trainer()
    with caplog.at_level("INFO", "newtune"):
        resumed.train(run.root / "checkpoint-4")
    assert "checkpoint-4/model.safetensors has" in caplog.text
    assert_same(weights(resumed.model), expected)
