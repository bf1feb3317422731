"""A run whose base and data come from a hub by id, and what a hub's faults leave behind."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hub_server import Break, Hub
from newtune.cli.main import app
from tiny import save_tiny_checkpoint

ROWS = [{"instruction": f"Say {n}", "input": "", "output": f"{n} {n}"} for n in range(6)]


def newtune(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def config(hub: Hub, tmp_path: Path) -> Path:
    """Serve base and data in two versions, of which the run names the older one."""
    content = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()
    hub.add("someone/tiny", save_tiny_checkpoint(tmp_path / "base"), tag="v1")
    hub.add("someone/tiny", {"config.json": b"not what the run asks for"})
    hub.add("someone/rows", {"train.jsonl": content}, kind="dataset", tag="v1")
    hub.add("someone/rows", {"train.jsonl": b"{}"}, kind="dataset")
    path = tmp_path / "run.yaml"
    path.write_text(f"""
base_model: someone/tiny
revision_of_model: v1
datasets: [{{path: someone/rows, revision: v1, type: alpaca}}]
dataset_prepared_path: {tmp_path}/prepared
sequence_len: 160
adapter: lora
lora_r: 4
lora_target_linear: true
bf16: false
micro_batch_size: 1
gradient_accumulation_steps: 2
max_steps: 2
learning_rate: 1e-2
output_dir: {tmp_path}/run
""")
    return path


def test_ids_give_what_folders_give(config: Path, tmp_path: Path) -> None:
    done = newtune("train", config)
    assert done.exit_code == 0, done.output
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    local = newtune(
        *("train", config, "--base_model", tmp_path / "base", "--revision_of_model", ""),
        *("--datasets.0.path", tmp_path / "rows.jsonl", "--datasets.0.revision", ""),
        *("--output_dir", tmp_path / "local"),
    )
    assert local.exit_code == 0, local.output
    weights = [tmp_path / name / "adapter_model.safetensors" for name in ("run", "local")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("someone/tiny", "v1")
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'base_model: "someone/tiny"' in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("--base_model", "someone/tny"), "Did you mean `someone/tiny`"),
        (("--revision_of_model", "v3"), "no revision `v3`"),
        (("--datasets.0.path", "someone/row"), "Did you mean `someone/rows`"),
        (("--datasets.0.data_files", "x.jsonl"), "holds no file `x.jsonl`"),
        (("--lora_model_dir", "someone/adapter"), "has no model `someone/adapter`"),
    ],
)
def test_a_mistake_stops_before_anything_is_written(config: Path, hub: Hub, changes, said) -> None:
    done = newtune("train", config, *changes)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())
    assert not (config.parent / "run").exists()
    assert not hub.asked("/lfs/")


def test_weights_that_break_off_leave_nothing_and_the_same_command_goes_on(
    config: Path, hub: Hub, monkeypatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.breaks.append(Break("/lfs/", after=0, times=99))
    done = newtune("train", config)
    assert done.exit_code == 2
    assert "cannot read its weights" in done.output
    assert not (config.parent / "run").exists()
    hub.breaks.clear()
    again = newtune("train", config)
    assert again.exit_code == 0, again.output


def test_a_run_does_not_go_on_with_what_has_moved_on(
    config: Path, hub: Hub, tmp_path: Path
) -> None:
    base, rows = hub.repos["model", "someone/tiny"], hub.repos["dataset", "someone/rows"]
    for repo in (base, rows):
        repo.branches["now"] = repo.tags["v1"]
    given = ("--revision_of_model", "now", "--datasets.0.revision", "now", "--save_steps", "1")
    first = newtune("train", config, *given)
    assert first.exit_code == 0, first.output
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    again = newtune("train", config, *given, "--resume")
    assert again.exit_code == 0, again.output
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")

    hub.add("someone/tiny", save_tiny_checkpoint(tmp_path / "b", seed=1), branch="now")
    refused = newtune("train", config, *given, "--resume")
    assert refused.exit_code == 2, refused.output
    assert "`someone/tiny`: its weights are not those" in " ".join(refused.output.split())

    base.branches["now"] = base.tags["v1"]
    changed = hub.files("someone/rows", "v1", kind="dataset")["train.jsonl"].replace(
        b"Say", b"Sing"
    )
    hub.add("someone/rows", {"train.jsonl": changed}, kind="dataset", branch="now")
    refused = newtune("train", config, *given, "--resume")
    assert refused.exit_code == 2, refused.output
    assert "the prepared data are not those" in " ".join(refused.output.split())
