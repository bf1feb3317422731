import sys
import types
from unittest.mock import MagicMock

import pytest

from newtune.errors import ConfigError, SetupError
from newtune.plan.parts import TrackerPlan
from newtune.training import trackers
from newtune.training.trackers import check_trackers
from runs import TinyRun, packed

RUN = {
    "steps": 2,
    "evaluation_batches": packed(1, first=500),
    "evaluation": {"at_steps": frozenset({2})},
    "save": {"at_steps": frozenset({1, 2})},
}


def train(root, name, options=(), run_name=None):
    plan = TrackerPlan((name,), run_name, {name: dict(options)})
    run = TinyRun(root, trackers=plan, **RUN)
    run.trainer().train()
    return run


def library(monkeypatch, name):
    """Put a stand-in for a tracker's package where it would be imported from."""
    fake = MagicMock(name=name)
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda module: types.SimpleNamespace()
    )
    return fake


def test_tensorboard_for_real(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert written == [(step, pytest.approx(loss)) for step, loss in run.losses().items()]
    assert [event.step for event in events.Scalars("eval/loss")] == [2]
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_wandb_keys_reach_init(tmp_path, monkeypatch):
    wandb = library(monkeypatch, "wandb")
    options = {"project": "p", "entity": "e", "run_id": "7", "mode": "offline", "tags": "t"}
    train(tmp_path, "wandb", options, run_name="first")
    given = wandb.init.call_args.kwargs
    assert given["config"]["optimizer.learning_rate"] == 0.01
    assert {key: given[key] for key in given.keys() - {"config"}} == {
        "dir": str(tmp_path),
        "project": "p",
        "entity": "e",
        "id": "7",
        "resume": "allow",
        "mode": "offline",
        "tags": ["t"],
        "name": "first",
    }
    run = wandb.init.return_value
    logged = {call.kwargs["step"]: call.args[0] for call in run.log.call_args_list[:2]}
    assert logged[1]["train/learning_rate"] == 0.01
    run.watch.assert_not_called()
    run.log_artifact.assert_not_called()
    run.finish.assert_called_once_with()


@pytest.mark.parametrize(
    ("log_model", "uploaded"),
    [("checkpoint", ["checkpoint-1", "checkpoint-2"]), ("end", ["checkpoint-2"]), ("false", [])],
)
def test_wandb_uploads_what_it_is_asked_for(tmp_path, monkeypatch, log_model, uploaded):
    wandb = library(monkeypatch, "wandb")
    train(tmp_path, "wandb", {"log_model": log_model, "watch": "gradients"})
    run = wandb.init.return_value
    aliases = [call.kwargs["aliases"] for call in run.log_artifact.call_args_list]
    assert aliases == [[name] for name in uploaded]
    assert run.watch.call_args.kwargs == {"log": "gradients", "log_freq": 1}


def test_mlflow_keys(tmp_path, monkeypatch):
    mlflow = library(monkeypatch, "mlflow")
    options = {
        "tracking_uri": "file:runs",
        "experiment_name": "x",
        "run_name": "r",
        "log_artifacts": True,
    }
    train(tmp_path, "mlflow", options)
    mlflow.set_tracking_uri.assert_called_once_with("file:runs")
    mlflow.set_experiment.assert_called_once_with("x")
    mlflow.start_run.assert_called_once_with(run_name="r")
    assert mlflow.log_metrics.call_args_list[0].kwargs == {"step": 1}
    assert [call.kwargs for call in mlflow.log_artifacts.call_args_list] == [
        {"artifact_path": "checkpoint-1"},
        {"artifact_path": "checkpoint-2"},
    ]
    mlflow.end_run.assert_called_once_with()


def test_comet_keys(tmp_path, monkeypatch):
    comet = library(monkeypatch, "comet_ml")
    options = {"project_name": "p", "online": False, "experiment_config": {"tags": ["t"]}}
    train(tmp_path, "comet", options, run_name="r")
    comet.ExperimentConfig.assert_called_once_with(name="r", tags=["t"])
    comet.start.assert_called_once_with(
        project_name="p", online=False, experiment_config=comet.ExperimentConfig.return_value
    )
    comet.start.return_value.end.assert_called_once_with()


def test_trackio_keys(tmp_path, monkeypatch):
    trackio = library(monkeypatch, "trackio")
    train(tmp_path, "trackio", {"project_name": "p", "run_name": "r", "space_id": "me/s"})
    given = trackio.init.call_args.kwargs
    assert (given["project"], given["name"], given["space_id"]) == ("p", "r", "me/s")
    trackio.init.return_value.finish.assert_called_once_with()


def test_a_tracker_is_ended_when_the_run_fails(tmp_path, monkeypatch):
    wandb = library(monkeypatch, "wandb")
    plan = TrackerPlan(("wandb",), None, {})

    def loss_sum(model, batch):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        TinyRun(tmp_path, trackers=plan, loss_sum=loss_sum).trainer().train()
    wandb.init.return_value.finish.assert_called_once_with()


@pytest.mark.parametrize("name", trackers.KINDS)
def test_a_missing_package_is_answered_with_its_extra(monkeypatch, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(SetupError, match=rf"pip install 'newtune\[{name}\]'"):
        check_trackers(TrackerPlan((name,), None, {}))


def test_an_unknown_tracker_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean `wandb`"):
        check_trackers(TrackerPlan(("wandbb",), None, {}))
