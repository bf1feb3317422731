"""Every key of a tracker is seen in what the real package wrote, offline."""

import importlib.util
import json
import sqlite3
import zipfile
from pathlib import Path

import pytest

from configs import valid
from newtune.errors import SetupError
from newtune.plan.ledger import Ledger
from newtune.plan.trackers import plan_trackers
from runs import TinyRun

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages themselves


def train(folder: Path, monkeypatch, **keys) -> TinyRun:
    """Train two steps, reporting as the keys say; the working directory is the run's."""
    monkeypatch.chdir(folder)
    trackers = plan_trackers(valid(**keys).tracking, Ledger())
    run = TinyRun(
        folder / "out", steps=2, trackers=trackers, save={"at_steps": frozenset({1, 2})}, lora=True
    )
    run.trainer().train()
    return run


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install 'newtune[test]')")


def wandb_records(file: Path):
    """Yield the records of a `.wandb` file: LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_wandb(tmp_path, monkeypatch):
    needs("wandb")
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # a busy machine starts its process slowly
    run = train(
        tmp_path,
        monkeypatch,
        wandb_project="plans",
        wandb_entity="me",
        wandb_name="first",
        wandb_run_id="abc",
        wandb_group="tests",
        wandb_tags=["t"],
        wandb_mode="offline",
        wandb_watch="gradients",
        wandb_log_model="end",
    )
    wandb.teardown()  # its process writes the rest of the file as it ends
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    (started,) = [record.run for record in records if record.HasField("run")][:1]
    assert (started.project, started.entity, started.display_name) == ("plans", "me", "first")
    assert (started.run_id, started.run_group, list(started.tags)) == ("abc", "tests", ["t"])
    settings = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert settings["optimizer.learning_rate"] == 0.01
    logged = {}
    for record in records:
        for item in record.history.item if record.HasField("history") else ():
            logged.setdefault(item.key or "/".join(item.nested_key), item.value_json)
    assert json.loads(logged["train/loss"]) == pytest.approx(run.losses()[1])
    assert any(key.startswith("gradients/") for key in logged)
    uploaded = [str(record) for record in records if "model-abc" in str(record)]
    assert uploaded
    assert not any("checkpoint-1" in text for text in uploaded)
    assert any("checkpoint-2" in text for text in uploaded)


def test_mlflow(tmp_path, monkeypatch):
    needs("mlflow")
    import mlflow

    store = f"sqlite:///{tmp_path}/runs.db"
    run = train(
        tmp_path,
        monkeypatch,
        mlflow_experiment_name="plans",
        mlflow_tracking_uri=store,
        mlflow_run_name="first",
        hf_mlflow_log_artifacts=True,
    )
    client = mlflow.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("plans").experiment_id])
    assert found.info.run_name == "first"
    assert found.data.params["optimizer.learning_rate"] == "0.01"
    losses = {
        item.step: item.value for item in client.get_metric_history(found.info.run_id, "train/loss")
    }
    assert losses == pytest.approx(run.losses())
    kept = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"checkpoint-1", "checkpoint-2"} <= kept


def test_comet(tmp_path, monkeypatch):
    needs("comet_ml")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))
    key = "a" * 40
    run = train(
        tmp_path,
        monkeypatch,
        comet_project_name="plans",
        comet_workspace="me",
        comet_api_key="not-a-key",
        comet_experiment_key=key,
        comet_mode="create",
        comet_online=False,
        comet_experiment_config={"tags": ["t"], "name": "first"},
    )
    with zipfile.ZipFile(tmp_path / "comet" / f"{key}.zip") as archive:
        about = json.loads(archive.read("experiment.json"))
        lines = archive.read("messages.json").decode().splitlines()
    assert (about["project_name"], about["workspace"], about["tags"]) == ("plans", "me", ["t"])
    assert (about["offline_id"], about["resume_strategy"]) == (key, "create")
    messages = [json.loads(line) for line in lines]
    losses = {
        message["payload"]["metric"]["step"]: message["payload"]["metric"]["metricValue"]
        for message in messages
        if message["payload"].get("metric", {}).get("metricName") == "train/loss"
    }
    assert {step: float(value) for step, value in losses.items()} == pytest.approx(run.losses())
    assert any('"first"' in line for line in lines)
    assert not any("not-a-key" in line for line in lines)


def test_trackio(tmp_path, monkeypatch):
    needs("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = train(tmp_path, monkeypatch, trackio_project_name="plans", trackio_run_name="first")
    (file,) = (tmp_path / "trackio").glob("plans*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
        settings = json.loads(database.execute("select config from configs").fetchone()[0])
    logged = [(step, json.loads(text)) for _, step, text in rows]
    losses = {step: values["train/loss"] for step, values in logged if "train/loss" in values}
    assert {name for name, _, _ in rows} == {"first"}
    assert losses == pytest.approx(run.losses())
    assert settings["optimizer.learning_rate"] == 0.01


def test_wandb_without_a_login_is_told_how_to_go_on(tmp_path, monkeypatch):
    needs("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(SetupError, match="`wandb login` or set WANDB_API_KEY; or write"):
        train(tmp_path, monkeypatch, wandb_project="plans")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "comet", "trackio"])
def test_a_switch_turns_a_tracker_on_and_off(name):
    project = "mlflow_experiment_name" if name == "mlflow" else f"{name}_project"
    project = project if name in ("wandb", "mlflow") else f"{project}_name"
    switch = f"use_{name}"
    assert plan_trackers(valid(**{project: "p"}).tracking, Ledger()).names == (name,)
    assert plan_trackers(valid(**{switch: True}).tracking, Ledger()).names == (name,)
    off = valid(**{project: "p", switch: False})
    assert plan_trackers(off.tracking, Ledger()).names == ()


@pytest.mark.parametrize(
    ("key", "option"),
    [("comet_api_key", "api_key"), ("trackio_space_id", "space_id")],
)
def test_what_needs_a_server_reaches_its_package(key, option):
    """What the packages are then called with: `tests/unit/training/test_training_trackers.py`."""
    name = key.partition("_")[0]
    plan = plan_trackers(valid(**{f"use_{name}": True, key: "x"}).tracking, Ledger())
    assert plan.options[name] == {option: "x"}


@pytest.mark.parametrize("value", [True, False])
def test_wandb_switches_may_be_true_or_false(value):
    config = valid(wandb_project="p", wandb_watch=value, wandb_log_model=value)
    options = plan_trackers(config.tracking, Ledger()).options["wandb"]
    assert (options["watch"], options["log_model"]) == (value, value)
