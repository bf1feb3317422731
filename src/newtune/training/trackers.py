"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, Comet, Trackio; none by default.

Each is a small adapter around the library's own calls. Options are the configuration's keys
without their prefix (`wandb_project` → `project`).
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.errors import ConfigError, Problem, SetupError
from newtune.lookup import did_you_mean
from newtune.plan.parts import Plan, TrackerPlan


class Tracker(Protocol):
    """One open run of a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report the values of one step."""
        ...

    def saved(self, checkpoint: Path, *, is_last: bool) -> None:
        """Hear of a complete checkpoint, which some trackers upload when asked to."""
        ...

    def close(self) -> None:
        """End the run and wait until everything has been handed over."""
        ...


@dataclass(frozen=True)
class Start:
    """What a tracker is started with."""

    options: Mapping[str, Any]
    run_name: str | None
    folder: Path
    facts: Mapping[str, Any]
    """The run's plan, flat, for the tracker's table of settings."""
    model: Any
    backward_passes_per_log: int = 1


class TensorBoard:
    """Event files in `<output_dir>/tensorboard`."""

    def __init__(self, start: Start) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer: Any = writer(log_dir=str(start.folder / "tensorboard"))
        table = "\n".join(f"| {key} | {value} |" for key, value in start.facts.items())
        self.writer.add_text("settings", f"| key | value |\n|---|---|\n{table}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one scalar per value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def saved(self, checkpoint: Path, *, is_last: bool) -> None:
        """Do nothing: checkpoints stay where they are."""

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases."""

    def __init__(self, start: Start) -> None:
        options = dict(start.options)
        watch, self.log_model = options.pop("watch", None), options.pop("log_model", None)
        watch = "gradients" if watch is True else watch
        self.log_model = "end" if self.log_model is True else self.log_model
        run_id, tags = options.pop("run_id", None), options.pop("tags", None)
        self.library: Any = importlib.import_module("wandb")
        try:
            self.run: Any = self.library.init(
                dir=str(start.folder),
                config=dict(start.facts),
                id=run_id,
                resume="allow" if run_id else None,
                tags=[tags] if isinstance(tags, str) else tags,
                **{"name": start.run_name, **options},
            )
        except self.library.Error as error:
            raise SetupError(
                f"Weights & Biases, asked for by `wandb_project`, starts no run: {error} Log in "
                "with `wandb login` or set WANDB_API_KEY; or write `wandb_mode: offline`; or "
                "leave `wandb_project` out."
            ) from error
        if watch and watch != "false":
            # wandb's own 1,000 passes are more than a short run has
            self.run.watch(start.model, log=watch, log_freq=start.backward_passes_per_log)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report the values."""
        self.run.log(dict(values), step=step)

    def saved(self, checkpoint: Path, *, is_last: bool) -> None:
        """Upload it if `wandb_log_model` says so: `checkpoint`, or `end` for the last."""
        if self.log_model == "checkpoint" or (self.log_model == "end" and is_last):
            artifact = self.library.Artifact(f"model-{self.run.id}", type="model")
            artifact.add_dir(str(checkpoint))
            self.run.log_artifact(artifact, aliases=[checkpoint.name])

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """A run of MLflow."""

    def __init__(self, start: Start) -> None:
        options = start.options
        self.library: Any = importlib.import_module("mlflow")
        self.log_artifacts = bool(options.get("log_artifacts"))
        if options.get("tracking_uri"):
            self.library.set_tracking_uri(options["tracking_uri"])
        if options.get("experiment_name"):
            self.library.set_experiment(options["experiment_name"])
        self.library.start_run(run_name=options.get("run_name", start.run_name))
        # the server refuses values beyond 500 characters
        self.library.log_params({key: str(value)[:500] for key, value in start.facts.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report the values."""
        self.library.log_metrics(dict(values), step=step)

    def saved(self, checkpoint: Path, *, is_last: bool) -> None:
        """Upload it if `hf_mlflow_log_artifacts` says so."""
        if self.log_artifacts:
            self.library.log_artifacts(str(checkpoint), artifact_path=checkpoint.name)

    def close(self) -> None:
        """End the run."""
        self.library.end_run()


class Comet:
    """An experiment of Comet."""

    def __init__(self, start: Start) -> None:
        library: Any = importlib.import_module("comet_ml")
        options = dict(start.options)
        settings = {"name": start.run_name, **options.pop("experiment_config", {})}
        self.experiment: Any = library.start(
            **options, experiment_config=library.ExperimentConfig(**settings)
        )
        self.experiment.log_parameters(dict(start.facts))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report the values."""
        self.experiment.log_metrics(dict(values), step=step)

    def saved(self, checkpoint: Path, *, is_last: bool) -> None:
        """Do nothing: no key asks for uploads."""

    def close(self) -> None:
        """End the experiment."""
        self.experiment.end()


class Trackio:
    """A run of Trackio, kept on this machine unless a space is named."""

    def __init__(self, start: Start) -> None:
        options = start.options
        library: Any = importlib.import_module("trackio")
        self.run: Any = library.init(
            project=options.get("project_name") or "newtune",
            name=options.get("run_name", start.run_name),
            space_id=options.get("space_id"),
            config=dict(start.facts),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report the values."""
        self.run.log(dict(values), step=step)

    def saved(self, checkpoint: Path, *, is_last: bool) -> None:
        """Do nothing: no key asks for uploads."""

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


@dataclass(frozen=True)
class Kind:
    """How a tracker is opened, and the package and extra it needs."""

    open: Callable[[Start], Tracker]
    module: str
    extra: str


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind(TensorBoard, "tensorboard", "tensorboard"),
    "wandb": Kind(WeightsAndBiases, "wandb", "wandb"),
    "mlflow": Kind(MLflow, "mlflow", "mlflow"),
    "comet": Kind(Comet, "comet_ml", "comet"),
    "trackio": Kind(Trackio, "trackio", "trackio"),
}


def check_trackers(plan: TrackerPlan) -> None:
    """Check that every tracker exists and its package is there, before anything is loaded.

    Raises:
        ConfigError: an unknown tracker.
        SetupError: a missing package; the message holds the line that installs it.
    """
    for name in plan.names:
        if name not in KINDS:
            hint = did_you_mean(name, KINDS) or f"known: {', '.join(KINDS)}"
            raise ConfigError([Problem("trackers", f"unknown tracker `{name}`; {hint}")])
        if importlib.util.find_spec(KINDS[name].module) is None:
            raise SetupError(
                f"reporting to {name} needs a package that is not installed: "
                f"pip install 'newtune[{KINDS[name].extra}]'"
            )


class Reporting(TrainerCallback):
    """Opens the trackers when the run starts, and hands them every log."""

    def __init__(self, plan: TrackerPlan, folder: Path, facts: Mapping[str, Any]) -> None:
        check_trackers(plan)
        self.plan = plan
        self.folder = folder
        self.facts = facts
        self.open: list[Tracker] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Open every tracker asked for."""
        for name in self.plan.names:
            options = self.plan.options.get(name, {})
            passes = int(args.logging_steps) * args.gradient_accumulation_steps
            start = Start(options, self.plan.run_name, self.folder, self.facts, model, passes)
            self.open.append(KINDS[name].open(start))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report `loss` as `train/loss` and `eval_loss` as `eval/loss`, as the field does."""
        values = {_grouped(name): float(value) for name, value in (logs or {}).items()}
        for tracker in self.open:
            tracker.log(values, state.global_step)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Tell the trackers of the checkpoint."""
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        for tracker in self.open:
            tracker.saved(checkpoint, is_last=is_last)

    def close(self) -> None:
        """End every tracker's run, whatever happened."""
        while self.open:
            self.open.pop().close()


def _grouped(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def facts_of(plan: Plan) -> dict[str, Any]:
    """Return a plan's main parts, flat, for a tracker's table of settings."""
    training = plan.training
    parts: dict[str, Any] = {
        "model": plan.model,
        "precision": plan.model.precision,
        "adapter": plan.adapter,
        "steps": training.steps,
        "optimizer": training.optimizer,
        "schedule": training.schedule,
    }
    return {
        f"{name}.{field.name}": getattr(part, field.name)
        for name, part in parts.items()
        if part is not None
        for field in fields(part)
    }
