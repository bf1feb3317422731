"""Every setting of the training plan acts on the run."""

import dataclasses

import pytest
import torch

from newtune.errors import SetupError
from newtune.training.arguments import OneDeviceArguments, training_arguments
from newtune.training.build import say_which_gpu
from newtune.training.callbacks import epoch_after
from runs import ListedBatches, TinyRun, assert_same, packed, weights


def finished(root, **settings):
    run = TinyRun(root, **settings)
    trainer = run.trainer()
    trainer.train()
    return run, trainer


SGD = {"name": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}


def one_step(root, **optimizer):
    run, trainer = finished(root, steps=1, optimizer={**SGD, **optimizer})
    before = weights(run.model())
    after = weights(trainer.model)
    return run, {name: after[name] - before[name] for name in before}


def test_the_gradient_is_clipped_to_its_norm(tmp_path):
    run, free = one_step(tmp_path / "free")
    norm = run.metrics()[0]["grad_norm"]
    _, clipped = one_step(tmp_path / "clipped", max_grad_norm=norm / 4)
    for name in free:
        torch.testing.assert_close(clipped[name], free[name] / 4, rtol=1e-3, atol=1e-7)
    length = torch.cat([change.flatten() for change in free.values()]).norm().item()
    assert norm == pytest.approx(length / 0.5, rel=1e-4)


def test_weight_decay_shrinks_by_rate_times_decay(tmp_path):
    start = weights(TinyRun(tmp_path).model())
    _, without = one_step(tmp_path / "without")
    _, decayed = one_step(tmp_path / "with", weight_decay=0.1)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(decayed[name], without[name] - 0.5 * 0.1 * start[name])
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(decayed[norm], without[norm])


def test_the_learning_rate_of_every_step_is_the_schedules(tmp_path):
    run, _ = finished(
        tmp_path,
        steps=6,
        optimizer={"learning_rate": 0.01},
        schedule={"name": "linear", "warmup_steps": 2},
    )
    rates = [line["learning_rate"] for line in run.metrics() if "loss" in line]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


def test_a_step_at_rate_zero_changes_nothing(tmp_path):
    run, trainer = finished(tmp_path, steps=1, schedule={"warmup_steps": 2})
    assert_same(weights(trainer.model), weights(run.model()))


def test_epochs_are_those_of_the_data(tmp_path):
    run = TinyRun(tmp_path, epochs=(2, 3))
    run.trainer().train()
    epochs = [line["epoch"] for line in run.metrics() if "loss" in line]
    assert epochs == pytest.approx([0.5, 1, 4 / 3, 5 / 3, 2])


def test_a_last_epoch_that_is_cut_off_counts_as_its_part():
    found = [epoch_after(step, (4, 2), last_epoch_steps=8) for step in range(7)]
    assert found == [0, 0.25, 0.5, 0.75, 1, 1.125, 1.25]


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_logging_steps(tmp_path, every, steps):
    run, _ = finished(tmp_path, steps=5, training={"logging_steps": every})
    assert sorted(run.losses()) == steps


def test_a_logged_loss_is_the_mean_over_the_tokens_of_its_steps(tmp_path):
    each, _ = finished(tmp_path / "each", steps=2, optimizer={"learning_rate": 0.0})
    both, _ = finished(
        tmp_path / "both",
        steps=2,
        optimizer={"learning_rate": 0.0},
        training={"logging_steps": 2},
    )
    lines = [line for line in each.metrics() if "loss" in line]
    counts = [lines[0]["trained_tokens"], lines[1]["trained_tokens"] - lines[0]["trained_tokens"]]
    expected = sum(line["loss"] * n for line, n in zip(lines, counts, strict=True)) / sum(counts)
    assert both.losses()[2] == pytest.approx(expected)


def test_evaluations_and_saves_happen_at_the_plans_steps(tmp_path):
    run, _ = finished(
        tmp_path,
        steps=5,
        evaluation_batches=packed(1, first=500),
        evaluation={"at_steps": frozenset({2, 5})},
        save={"at_steps": frozenset({3})},
    )
    assert [line["step"] for line in run.metrics() if "eval_loss" in line] == [2, 5]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_save_total_limit_and_save_only_model(tmp_path):
    finished(
        tmp_path,
        steps=4,
        save={"at_steps": frozenset({1, 2, 3, 4}), "keep": 2, "weights_only": True},
    )
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-4",
    ]
    assert not (tmp_path / "checkpoint-4" / "optimizer.pt").exists()


def test_early_stopping(tmp_path):
    run, trainer = finished(
        tmp_path,
        steps=8,
        optimizer={"learning_rate": 0.0},
        evaluation_batches=packed(1, first=500),
        evaluation={"at_steps": frozenset(range(1, 9)), "early_stopping_patience": 2},
    )
    assert trainer.state.global_step == 3
    assert [line["step"] for line in run.metrics() if "eval_loss" in line] == [1, 2, 3]


def test_early_stopping_by_a_threshold(tmp_path):
    _, trainer = finished(
        tmp_path,
        steps=6,
        evaluation_batches=packed(1, first=500),
        evaluation={
            "at_steps": frozenset(range(1, 7)),
            "early_stopping_patience": 3,
            "early_stopping_threshold": 100.0,
        },
    )
    assert trainer.state.global_step == 4


def test_noise_on_the_embeddings(tmp_path):
    quiet, _ = finished(tmp_path / "quiet", steps=1)
    noisy, trainer = finished(tmp_path / "noisy", steps=1, training={"neftune_noise_alpha": 50.0})
    assert quiet.losses()[1] != noisy.losses()[1]
    assert not trainer.model.get_input_embeddings()._forward_hooks


def test_autocast_covers_training_and_evaluation(tmp_path):
    seen = []

    def spy(model, batch):
        from runs import plain_loss_sum

        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return plain_loss_sum(model, batch)

    settings = {
        "steps": 1,
        "loss_sum": spy,
        "evaluation_batches": packed(1),
        "evaluation": {"at_steps": frozenset({1})},
    }
    finished(tmp_path / "bf16", precision={"autocast": "bfloat16"}, **settings)
    assert seen == [torch.bfloat16] * 2
    seen.clear()
    finished(tmp_path / "none", **settings)
    assert seen == [None, None]


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(SetupError, match="fp16"):
        TinyRun(tmp_path, precision={"autocast": "float16"}).trainer()


def test_there_is_never_more_than_one_gpu(tmp_path):
    arguments = training_arguments(TinyRun(tmp_path).plan(), tmp_path)
    assert isinstance(arguments, OneDeviceArguments)
    arguments._n_gpu = 4
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 1


def test_several_gpus_are_mentioned(tmp_path, monkeypatch, caplog):
    plan = TinyRun(tmp_path).plan()
    plan = dataclasses.replace(plan, model=dataclasses.replace(plan.model, device="cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with caplog.at_level("INFO", "newtune"):
        say_which_gpu(plan)
    assert caplog.messages == ["4 GPUs are visible; newtune trains on one of them, cuda:0"]


def test_nothing_is_reported_anywhere(tmp_path):
    arguments = training_arguments(TinyRun(tmp_path).plan(), tmp_path)
    assert arguments.report_to == []
    assert arguments.push_to_hub is False


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_gives_the_batches_in_order(tmp_path, workers):
    batches = packed(4)
    run = TinyRun(tmp_path, train=batches, training={"dataloader_workers": workers})
    found = list(run.trainer().get_train_dataloader())
    assert len(found) == 4
    assert all(
        torch.equal(one["input_ids"], batches[n]["input_ids"]) for n, one in enumerate(found)
    )


def test_loader_settings_reach_the_loader(tmp_path):
    plan = TinyRun(
        tmp_path,
        training={
            "dataloader_workers": 2,
            "dataloader_prefetch_factor": 5,
            "dataloader_pin_memory": True,
        },
    ).plan()
    arguments = training_arguments(plan, tmp_path)
    assert arguments.dataloader_num_workers == 2
    assert arguments.dataloader_prefetch_factor == 5
    assert arguments.dataloader_pin_memory is False  # there is nothing to pin for on a CPU
    on_gpu = dataclasses.replace(plan, model=dataclasses.replace(plan.model, device="cuda:0"))
    from newtune.training import arguments as module

    assert module._data(on_gpu)["dataloader_pin_memory"] is True


def test_the_models_own_use_cache_is_left_alone(tmp_path):
    run = TinyRun(tmp_path, steps=1, save={"at_steps": frozenset({1})})
    trainer = run.trainer()
    assert trainer.model.config.use_cache is True
    trainer.train()
    assert '"use_cache": true' in (tmp_path / "checkpoint-1" / "config.json").read_text()


def test_padding_and_fillers_do_not_count_as_tokens(tmp_path):
    batches = ListedBatches([[[0], [1]], []])  # lengths 7 and 8: one token of padding
    run, _ = finished(tmp_path, steps=1, accumulation=2, rows=2, train=batches)
    line = run.metrics()[0]
    assert line["tokens"] == 7 + 8 + 2
    assert line["trained_tokens"] == 3 + 4
