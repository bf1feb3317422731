"""Who may use a run's folder, and which checkpoint a run goes on from."""

import pytest

from newtune.errors import ConfigError, SetupError
from newtune.run_dir import RunDir, read_yaml, write_json, write_yaml


def checkpoint(run_dir, step, *, complete=True):
    folder = run_dir.root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if complete:
        write_json(folder / "manifest.json", {})
    return folder


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "run")


def test_a_fresh_folder_is_free(run_dir):
    assert run_dir.checkpoint_to_resume(None, automatic=False) is None


def test_a_folder_with_notes_only_is_free(run_dir):
    run_dir.root.mkdir()
    (run_dir.root / "notes.txt").write_text("mine")
    write_yaml(run_dir.config_file, {"seed": 1})
    assert run_dir.checkpoint_to_resume(None, automatic=False) is None


def test_two_runs_at_once_do_not_share_a_folder(run_dir, monkeypatch):
    monkeypatch.setattr("newtune.run_dir.CLAIM_SECONDS", 0)
    with run_dir.claimed():
        said = "another run is writing to output_dir"
        with pytest.raises(SetupError, match=said), RunDir(run_dir.root).claimed():
            pass
        (run_dir.root / "metrics.jsonl").write_text("x")
    with run_dir.claimed():
        assert run_dir.metrics_file.is_file()


def test_a_run_that_wrote_nothing_leaves_nothing(run_dir):
    with pytest.raises(ConfigError), run_dir.claimed():
        raise ConfigError([])
    assert not run_dir.root.exists()


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "model.safetensors", "metrics.jsonl"]
)
def test_a_used_folder_is_refused(run_dir, name):
    run_dir.root.mkdir()
    (run_dir.root / name).write_text("x")
    with pytest.raises(SetupError, match=f"{name}.*--resume"):
        run_dir.checkpoint_to_resume(None, automatic=False)


def test_the_latest_complete_checkpoint_is_taken(run_dir):
    checkpoint(run_dir, 9)
    latest = checkpoint(run_dir, 10)
    checkpoint(run_dir, 20, complete=False)
    assert run_dir.checkpoint_to_resume(None, automatic=True) == latest


def test_resuming_where_nothing_is_starts_anew(run_dir):
    assert run_dir.checkpoint_to_resume(None, automatic=True) is None


def test_a_finished_run_without_checkpoints_is_not_trained_over(run_dir):
    run_dir.root.mkdir()
    (run_dir.root / "adapter_model.safetensors").write_text("x")
    with pytest.raises(SetupError, match="finished run"):
        run_dir.checkpoint_to_resume(None, automatic=True)


def test_a_missing_or_incomplete_checkpoint_is_named(run_dir):
    checkpoint(run_dir, 5)
    half = checkpoint(run_dir, 6, complete=False)
    with pytest.raises(ConfigError, match=r"not a complete checkpoint.*checkpoint-5"):
        run_dir.checkpoint_to_resume(str(half), automatic=False)
    with pytest.raises(ConfigError, match="does not exist"):
        run_dir.checkpoint_to_resume(str(run_dir.root / "checkpoint-7"), automatic=False)


def test_resuming_compares_the_configurations(run_dir):
    write_yaml(run_dir.config_file, {"learning_rate": 1e-4, "seed": 1, "logging_steps": 1})
    run_dir.require_same_config({"learning_rate": 1e-4, "seed": 1, "logging_steps": 5})
    with pytest.raises(ConfigError) as caught:
        run_dir.require_same_config({"learning_rate": 2e-4, "lora_r": 8, "seed": 1})
    assert [problem.path for problem in caught.value.problems] == ["learning_rate", "lora_r"]


def test_yaml_comes_back_as_it_was(tmp_path):
    value = {"a": 1e-4, "b": "no", "c": [1, {"d": None}], "e": "multi\nline", "f": True, "g": "1e3"}
    write_yaml(tmp_path / "x.yaml", value)
    assert read_yaml(tmp_path / "x.yaml") == value
