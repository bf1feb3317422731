"""Uploads while a run trains: every strategy, what loads and resumes there, what may fail."""

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors.torch import load
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from hub_server import Break, Hub
from newtune.cli.main import app
from tiny import save_tiny_checkpoint

SECRET = "hf_never_to_be_seen_0123456789"
IDS = torch.arange(10, 30)[None]


def newtune(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uploads")
    save_tiny_checkpoint(folder / "base")
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} {n}"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture
def mine(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub to which the token in HF_TOKEN may write as `me`."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me", SECRET))
    monkeypatch.setattr("newtune.outputs.publish.WAIT_SECONDS", 0)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return hub


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Path:
    """Four steps, a checkpoint after every second, of which one is kept."""
    path = tmp_path / "run.yaml"
    path.write_text(f"""
base_model: {folder}/base
datasets: [{{path: {folder}/rows.jsonl, type: alpaca}}]
dataset_prepared_path: {folder}/prepared
sequence_len: 160
adapter: lora
lora_r: 4
lora_target_linear: true
chat_template: zephyr
bf16: false
micro_batch_size: 1
gradient_accumulation_steps: 2
max_steps: 4
learning_rate: 1e-2
save_steps: 2
save_total_limit: 1
hub_model_id: me/model
hub_always_push: true
output_dir: {tmp_path}/run
""")
    return path


def logits_of(folder: Path, adapter: str | Path, **options) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, adapter, **options)
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("strategy", "titles", "folders"),
    [
        ("end", [], set()),
        ("every_save", ["Training, step 2", "Training, step 4"], set()),
        ("checkpoint", ["Training, step 2", "Training, step 4"], {"last-checkpoint"}),
        (
            "all_checkpoints",
            ["Training, step 2", "Training, step 4"],
            {"checkpoint-2", "checkpoint-4"},
        ),
    ],
)
def test_a_strategy_uploads_what_it_says(
    folder: Path, config: Path, mine: Hub, strategy, titles, folders
) -> None:
    done = newtune("train", config, "--hub_strategy", strategy)
    assert done.exit_code == 0, done.output
    assert mine.titles("me/model") == [
        *("initial commit", *titles, "Upload the adapter of a newtune run")
    ]
    files = mine.files("me/model")
    assert {name.split("/")[0] for name in files if "/" in name} == folders
    for inside in folders:
        manifest = json.loads(files[f"{inside}/manifest.json"])
        assert {f"{inside}/{name}" for name in manifest["files"]} < set(files)
    run = config.parent / "run"
    assert torch.equal(logits_of(folder, "me/model"), logits_of(folder, run))
    template = AutoTokenizer.from_pretrained("me/model").chat_template
    assert template == AutoTokenizer.from_pretrained(run).chat_template
    assert "Zephyr" in template
    assert not (run / ".uploading").exists()


def test_a_save_uploads_a_whole_model_from_which_a_run_goes_on(
    folder: Path, config: Path, mine: Hub, tmp_path: Path
) -> None:
    newtune("train", config, "--hub_strategy", "all_checkpoints")
    at_step_2 = mine.repos["model", "me/model"].commits[1]
    weights = load(at_step_2.files["adapter_model.safetensors"])
    kept = load(mine.files("me/model")["checkpoint-2/adapter_model.safetensors"])
    final = load(mine.files("me/model")["adapter_model.safetensors"])
    assert all(torch.equal(weights[name], kept[name]) for name in weights)
    assert any(not torch.equal(weights[name], final[name]) for name in weights)
    options = {"revision": at_step_2.id}
    assert not torch.equal(logits_of(folder, "me/model", **options), logits_of(folder, "me/model"))
    tokenizer = AutoTokenizer.from_pretrained("me/model", **options)
    assert "Zephyr" in tokenizer.chat_template
    card = at_step_2.files["README.md"].decode()
    assert card.startswith("---\n")
    assert "training loss" in card

    there = snapshot_download("me/model", allow_patterns="checkpoint-2/*", local_dir=tmp_path / "d")
    resumed = newtune(
        *("train", config, "--output_dir", tmp_path / "again", "--hub_model_id", "me/again"),
        *("--resume_from_checkpoint", Path(there) / "checkpoint-2"),
    )
    assert resumed.exit_code == 0, resumed.output
    first, again = (mine.files(f"me/{name}") for name in ("model", "again"))
    assert first["adapter_model.safetensors"] == again["adapter_model.safetensors"]


def test_a_full_model_is_uploaded_whole_and_in_one_set_of_files(
    config: Path, mine: Hub, tmp_path: Path
) -> None:
    mine.add("me/model", {"model-00001-of-00002.safetensors": b"old", "adapter_config.json": b"{}"})
    done = newtune("train", config, "--adapter", "", "--hub_strategy", "every_save")
    assert done.exit_code == 0, done.output
    assert [name for name in mine.files("me/model") if "safetensors" in name] == [
        "model.safetensors"
    ]
    assert "adapter_config.json" not in mine.files("me/model")
    ids = IDS
    hubs = AutoModelForCausalLM.from_pretrained("me/model")(input_ids=ids).logits
    local = AutoModelForCausalLM.from_pretrained(tmp_path / "run")(input_ids=ids).logits
    assert torch.equal(hubs, local)


def test_repository_branch_and_privacy_are_made_before_weights_load(
    config: Path, mine: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(*_, **__):
        repo = mine.repos["model", "me/model"]
        assert repo.private
        assert "v2" in repo.branches
        raise KeyboardInterrupt

    monkeypatch.setattr("newtune.run.load_model", load_model)
    newtune("train", config, "--hub_private_repo", "true", "--hub_revision", "v2")
    assert mine.asked("/branch/v2")
    assert list(mine.files("me/model", "v2")) == [".gitattributes"]


def test_a_branch_takes_the_uploads_and_main_stays(config: Path, mine: Hub) -> None:
    done = newtune("train", config, "--hub_revision", "v2", "--hub_strategy", "every_save")
    assert done.exit_code == 0, done.output
    assert newtune("upload", config, "--revision", "v2").exit_code == 0  # both are there now
    assert list(mine.files("me/model")) == [".gitattributes"]
    assert "adapter_model.safetensors" in mine.files("me/model", "v2")


def test_saves_during_an_upload_wait_and_only_the_newest_is_sent(config: Path, mine: Hub) -> None:
    released = threading.Event()
    mine.breaks.append(Break("/api/models/me/model/tree/", wait=released))  # before files are read
    steps = ("--save_steps", "1", "--hub_always_push", "false", "--hub_strategy", "every_save")
    results: list[Result] = []
    run = threading.Thread(target=lambda: results.append(newtune("train", config, *steps)))
    # the trainer listens for signals in the main thread only; here it runs in another
    run.start()
    summary = config.parent / "run" / "summary.json"
    for _ in range(600):
        if summary.is_file() or not run.is_alive():
            break
        run.join(0.1)
    assert summary.is_file(), "the training waited for the upload"
    assert run.is_alive(), "the end did not wait for the upload"
    released.set()
    run.join()
    assert results[0].exit_code == 0, results[0].output
    titles = mine.titles("me/model")[1:]
    assert titles == ["Training, step 1", "Training, step 4", "Upload the adapter of a newtune run"]
    _, first, last, _ = mine.repos["model", "me/model"].commits
    weights = "adapter_model.safetensors"
    assert first.files[weights] != last.files[weights]  # though checkpoint-1 was deleted long ago
    assert [path.name for path in config.parent.glob("run/checkpoint-*")] == ["checkpoint-4"]
    assert "step 2, step 3" in results[0].output


def test_a_failing_upload_ends_no_run_and_is_told_at_its_end(config: Path, mine: Hub) -> None:
    mine.breaks.append(Break("/commit/main", status=413))
    done = newtune("train", config, "--hub_strategy", "every_save")
    assert done.exit_code == 2
    assert "step 2" in done.output
    assert "413" in done.output
    assert f"newtune upload {config}" in " ".join(done.output.split())
    assert mine.titles("me/model")[-2:] == [
        "Training, step 4",
        "Upload the adapter of a newtune run",
    ]
    summary = json.loads((config.parent / "run" / "summary.json").read_text())
    assert summary["steps"] == 4
    assert "step 2" in summary["upload_problems"][0]


@pytest.mark.parametrize("wrong", [Break("/commit/main"), Break("/lfs/", method="PUT", status=503)])
def test_a_network_that_comes_back_costs_nothing(config: Path, mine: Hub, wrong: Break) -> None:
    mine.breaks.append(Break(wrong.path, method=wrong.method, status=wrong.status, times=2))
    done = newtune("train", config)
    assert done.exit_code == 0, done.output
    assert "adapter_model.safetensors" in mine.files("me/model")


def test_a_hub_that_is_gone_at_the_end_leaves_the_result_here(config: Path, mine: Hub) -> None:
    mine.breaks.append(Break("/api/models/me/model/tree/", times=99))
    done = newtune("train", config)
    assert done.exit_code == 2
    assert (config.parent / "run" / "adapter_model.safetensors").is_file()
    assert "the result:" in done.output
    mine.breaks.clear()
    assert newtune("upload", config).exit_code == 0
    assert "adapter_model.safetensors" in mine.files("me/model")
    before = mine.titles("me/model")  # and what is there already makes no second commit
    assert newtune("upload", config).exit_code == 0
    assert mine.titles("me/model") == before


@pytest.mark.parametrize("id", ["someone/model", "me//model", "me/model name"])
def test_an_id_that_cannot_be_written_to_stops_before_anything_is_written(
    config: Path, mine: Hub, id: str
) -> None:
    done = newtune("train", config, "--hub_model_id", id)
    assert done.exit_code == 2
    assert "hub_model_id" in done.output
    assert not (config.parent / "run").exists()


def test_no_token_stops_before_anything_is_written(config: Path, hub: Hub) -> None:
    done = newtune("train", config)
    assert done.exit_code == 2
    assert "hf auth login" in done.output
    assert not (config.parent / "run").exists()


def test_the_token_stands_nowhere(config: Path, mine: Hub, caplog, capfd) -> None:
    caplog.set_level("DEBUG")
    mine.breaks.append(Break("/commit/main", status=403))
    mine.breaks.append(Break("/lfs/", method="PUT"))
    outputs = [
        newtune("train", config, "--hub_strategy", "checkpoint"),
        newtune("upload", config, "--dry-run"),
        newtune("upload", config, "--to", "someone/else"),
        newtune("upload", config),
    ]
    said = "".join(done.output for done in outputs) + caplog.text + "".join(capfd.readouterr())
    assert "403" in said
    assert SECRET not in said
    for path in config.parent.rglob("*"):
        if path.is_file() and "hub-cache" not in path.parts:
            assert SECRET.encode() not in path.read_bytes(), path
    for repo in mine.repos.values():
        for commit in repo.commits:
            assert all(SECRET.encode() not in content for content in commit.files.values())


def test_prepared_data_is_uploaded_and_gives_the_same_run(config: Path, mine: Hub) -> None:
    split = ("--val_set_size", "2", "--hub_model_id", "")
    first = newtune("train", config, *split, "--push_dataset_to_hub", "me/rows")
    assert first.exit_code == 0, first.output
    assert mine.repos["dataset", "me/rows"].private
    assert {name for name in mine.files("me/rows", kind="dataset") if "/" in name} == {
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
    }
    weights = (config.parent / "run" / "adapter_model.safetensors").read_bytes()
    again = newtune(
        *("train", config, "--output_dir", config.parent / "again", "--hub_model_id", ""),
        *("--datasets.0.path", "me/rows", "--datasets.0.type", ""),
        *("--test_datasets.0.path", "me/rows", "--test_datasets.0.split", "test"),
        *("--shuffle_merged_datasets", "false"),
    )
    assert again.exit_code == 0, again.output
    assert (config.parent / "again" / "adapter_model.safetensors").read_bytes() == weights


def test_preprocess_uploads_prepared_data_too(config: Path, mine: Hub) -> None:
    given = ("--push_dataset_to_hub", "me/rows", "--hub_private_repo", "false")
    for _ in range(2):
        done = newtune("preprocess", config, *given)
        assert done.exit_code == 0, done.output
    assert not mine.repos["dataset", "me/rows"].private
    assert mine.titles("me/rows", kind="dataset") == ["initial commit", "Upload prepared data"]


def test_a_run_that_is_stopped_uploads_its_last_checkpoint(config: Path, mine: Hub) -> None:
    metrics = config.parent / "run" / "metrics.jsonl"

    ended = threading.Event()

    def stop_after_a_step() -> None:
        while not ended.wait(0.02):
            if metrics.is_file() and '"loss"' in metrics.read_text():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=stop_after_a_step)
    thread.start()
    given = ("--max_steps", "200", "--save_steps", "200", "--hub_strategy", "checkpoint")
    done = newtune("train", config, *given)
    ended.set()
    thread.join()
    assert done.exit_code == 130, done.output
    (kept,) = config.parent.glob("run/checkpoint-*")
    manifest = (kept / "manifest.json").read_bytes()
    assert mine.files("me/model")["last-checkpoint/manifest.json"] == manifest


def test_a_disk_too_full_to_set_a_checkpoint_aside_ends_no_run(
    config: Path, mine: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link_files(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("newtune.outputs.uploads.link_files", link_files)
    done = newtune("train", config, "--hub_strategy", "every_save")
    assert done.exit_code == 2
    assert "step 2: could not be set aside: [Errno 28] No space left on device" in done.output
    assert mine.titles("me/model") == ["initial commit", "Upload the adapter of a newtune run"]
