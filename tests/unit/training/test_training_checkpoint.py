import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from newtune.errors import TrainingError
from newtune.training import checkpoint as checkpoints
from newtune.training import run_state
from newtune.training.checkpoint import (
    damage_of,
    intact_checkpoint,
    load_weights,
    rotate,
    saved_shapes,
    written_aside,
)
from runs import TinyRun, assert_same, packed, weights


class Killed(str):
    """A text during whose writing somebody presses Ctrl-C."""


def write(root: Path, step: int, text: str = "content") -> Path:
    with written_aside(root, step, position=step, resumable=True) as folder:
        (folder / "file").write_text(text)
        if isinstance(text, Killed):
            raise KeyboardInterrupt
    return root / f"checkpoint-{step}"


def test_the_manifest_holds_size_and_hash_of_every_file(tmp_path):
    manifest = json.loads((write(tmp_path, 3, "abc") / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert manifest["files"]["file"] == {
        "bytes": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert damage_of(tmp_path / "checkpoint-3") is None


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda path: path.write_text("conte"), "5 bytes instead of 7"),
        (lambda path: path.write_text("Content"), "SHA-256"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.with_name("manifest.json").unlink(), "never completed"),
        (lambda path: path.with_name("manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_damage_is_found_and_named(tmp_path, harm, named):
    checkpoint = write(tmp_path, 1)
    harm(checkpoint / "file")
    assert named in damage_of(checkpoint)


def test_the_newest_intact_one_is_taken_instead_of_a_damaged_one(tmp_path, caplog):
    for step in (2, 10, 30):
        write(tmp_path, step)
    (tmp_path / "checkpoint-30" / "file").write_text("")
    with caplog.at_level("INFO", "newtune"):
        assert intact_checkpoint(tmp_path / "checkpoint-30") == tmp_path / "checkpoint-10"
    assert "checkpoint-30/file has 0 bytes instead of 7" in caplog.text


def test_nothing_intact_is_an_error_that_names_all(tmp_path):
    for step in (1, 2):
        (write(tmp_path, step) / "file").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint-2/file is missing.*checkpoint-1/file"):
        intact_checkpoint(tmp_path / "checkpoint-2")


def test_a_failure_while_writing_leaves_nothing_and_touches_nothing(tmp_path):
    kept = write(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, Killed("half"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert damage_of(kept) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path, error):
    write(tmp_path, 1)
    with (
        pytest.raises(TrainingError, match=r"(?s)step 2.*disk.*full.*checkpoint-1.*--resume"),
        written_aside(tmp_path, 2, position=2, resumable=True),
    ):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_under_torch_save_is_an_os_error():
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write_tensors(Path("/dev/full"), {"a": torch.zeros(100_000)})


def test_a_run_whose_disk_fills_up_keeps_its_last_checkpoint(tmp_path, monkeypatch):
    run = TinyRun(tmp_path, steps=4, lora=True, save={"at_steps": frozenset({2, 4})})
    trainer = run.trainer()
    real = checkpoints.write_tensors

    def full_at_step_4(path, value):
        if trainer.state.global_step == 4 and path.name == checkpoints.RNG_FILE:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, value)

    monkeypatch.setattr(run_state, "write_tensors", full_at_step_4)
    with pytest.raises(TrainingError, match="disk"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-2"]
    assert damage_of(tmp_path / "checkpoint-2") is None


def test_half_written_folders_of_a_killed_process_are_removed_at_the_next_start(tmp_path):
    (tmp_path / "checkpoint-9.partial").mkdir()
    TinyRun(tmp_path, steps=1).trainer().train()
    assert list(tmp_path.glob("checkpoint*")) == []


def test_a_process_killed_while_replacing_loses_nothing(tmp_path):
    write(tmp_path, 3).rename(tmp_path / "checkpoint-3.replaced")
    checkpoints.remove_partials(tmp_path)
    assert damage_of(tmp_path / "checkpoint-3") is None


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path):
    write(tmp_path, 1, "old")
    write(tmp_path, 1, "new")
    assert (tmp_path / "checkpoint-1" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (2, 1, [1, 4]),
        (1, None, [4]),
        (1, 2, [2, 4]),
        (1, 4, [4]),
    ],
)
def test_rotation_spares_the_best_and_the_latest(tmp_path, keep, best, left):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    rotate(tmp_path, keep=keep, best_step=best)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()) == left


@pytest.mark.parametrize("lora", [False, True])
def test_saved_weights_load_into_a_fresh_model(tmp_path, lora):
    run = TinyRun(tmp_path, steps=2, lora=lora, save={"at_steps": frozenset({2})})
    trainer = run.trainer()
    trainer.train()
    fresh = run.model()
    load_weights(fresh, tmp_path / "checkpoint-2")
    assert_same(weights(fresh), weights(trainer.model))
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    kind = {"adapter_model.safetensors"} if lora else {"model.safetensors", "config.json"}
    assert kind | {"optimizer.pt", "scheduler.pt", "rng_state.pth", "tokenizer.json"} <= names


def test_tied_weights_are_saved_once_and_loaded_twice(tmp_path):
    from tiny import tiny_llama

    model = tiny_llama(tie_word_embeddings=True)
    checkpoints.save_weights(model, tmp_path)
    assert "lm_head.weight" not in saved_shapes(tmp_path)
    other = tiny_llama(seed=5, tie_word_embeddings=True)
    load_weights(other, tmp_path)
    assert torch.equal(other.lm_head.weight, model.model.embed_tokens.weight)


def test_a_family_whose_names_differ_on_the_hub_keeps_its_own(tmp_path):
    from tiny import tiny_model

    model = tiny_model("mixtral")
    checkpoints.save_weights(model, tmp_path)
    other = tiny_model("mixtral", seed=3)
    load_weights(other, tmp_path)
    assert_same(weights(other), weights(model))


def test_another_models_checkpoint_is_refused(tmp_path):
    from tiny import tiny_llama

    checkpoints.save_weights(tiny_llama(), tmp_path)
    with pytest.raises(TrainingError, match="does not fit this model"):
        load_weights(tiny_llama(num_hidden_layers=3), tmp_path)


def test_a_parameter_that_was_not_saved_is_noticed(tmp_path):
    model = TinyRun(tmp_path).model()
    model._keys_to_ignore_on_save = ["model.norm.weight"]
    with pytest.raises(TrainingError, match=r"model\.norm\.weight"):
        checkpoints.save_weights(model, tmp_path)


def test_the_best_model_is_kept_and_loaded_at_the_end(tmp_path):
    run = TinyRun(
        tmp_path,
        steps=6,
        optimizer={"learning_rate": 0.3},
        evaluation_batches=packed(2, first=500),
        evaluation={"at_steps": frozenset({1, 2, 4, 6})},
        save={"load_best_at_end": True, "keep": 1},
    )
    trainer = run.trainer()
    trainer.train()
    losses = {line["step"]: line["eval_loss"] for line in run.metrics() if "eval_loss" in line}
    best = min(losses, key=losses.get)
    assert best != 6
    assert trainer.state.best_global_step == best
    saved = run.model()
    load_weights(saved, tmp_path / f"checkpoint-{best}")
    assert_same(weights(trainer.model), weights(saved))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_the_best_survives_a_move_of_the_folder(tmp_path):
    settings = {
        "steps": 4,
        "optimizer": {"learning_rate": 0.3},
        "evaluation_batches": packed(2, first=500),
        "evaluation": {"at_steps": frozenset({1, 2, 4})},
        "save": {"load_best_at_end": True, "at_steps": frozenset({2}), "keep": 3},
    }
    TinyRun(tmp_path / "here", **settings).trainer().train()
    (tmp_path / "here").rename(tmp_path / "there")
    trainer = TinyRun(tmp_path / "there", **settings).trainer()
    trainer.train(tmp_path / "there" / "checkpoint-2")
    assert trainer.state.best_model_checkpoint.startswith(str(tmp_path / "there"))


def test_save_strategy_best_saves_only_when_the_metric_improves(tmp_path):
    run = TinyRun(
        tmp_path,
        steps=4,
        optimizer={"learning_rate": 0.3},
        evaluation_batches=packed(2, first=500),
        evaluation={"at_steps": frozenset({1, 2, 3, 4})},
        save={"on_best": True},
    )
    run.trainer().train()
    losses = [line["eval_loss"] for line in run.metrics() if "eval_loss" in line]
    improved = [n + 1 for n, loss in enumerate(losses) if loss < min(losses[:n], default=9e9)]
    found = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert found == improved
