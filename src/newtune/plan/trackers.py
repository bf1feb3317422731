"""Which experiment trackers a run reports to: those whose own keys are given, none by default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from newtune.config.tracking import TrackingSection
from newtune.plan.ledger import Ledger
from newtune.plan.parts import TrackerPlan


@dataclass(frozen=True)
class Tracker:
    """How a tracker is asked for: its switch, and the keys whose presence asks for it too."""

    name: str
    switch: str
    prefix: str
    naming_keys: tuple[str, ...]
    further_keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of this tracker that do not carry its prefix → the option they set."""


TRACKERS = (
    Tracker("tensorboard", "use_tensorboard", "tensorboard_", ()),
    Tracker("wandb", "use_wandb", "wandb_", ("wandb_project",)),
    Tracker(
        "mlflow",
        "use_mlflow",
        "mlflow_",
        ("mlflow_experiment_name",),
        {"hf_mlflow_log_artifacts": "log_artifacts"},
    ),
    Tracker("comet", "use_comet", "comet_", ("comet_project_name",)),
    Tracker("trackio", "use_trackio", "trackio_", ("trackio_project_name",)),
)


def plan_trackers(section: TrackingSection, ledger: Ledger) -> TrackerPlan:
    """Return the trackers asked for, each with its own keys without their prefix."""
    names, options = [], {}
    run_name = None
    for tracker in TRACKERS:
        if not (reason := _asked_for(section, tracker)):
            continue
        names.append(ledger.decide(f"training.trackers.{tracker.name}", tracker.name, reason))
        options[tracker.name] = _options(section, tracker)
        run_name = run_name or _run_name(options[tracker.name])
    return TrackerPlan(names=tuple(names), run_name=run_name, options=options)


def _asked_for(section: TrackingSection, tracker: Tracker) -> str | None:
    switch = getattr(section, tracker.switch)
    if switch is not None:
        return tracker.switch if switch else None
    given = [key for key in tracker.naming_keys if getattr(section, key)]
    return f"{given[0]} is given" if given else None


def _options(section: TrackingSection, tracker: Tracker) -> Mapping[str, Any]:
    keys = [key for key in section.key_names() if key.startswith(tracker.prefix)]
    values = {key.removeprefix(tracker.prefix): getattr(section, key) for key in keys}
    values |= {option: getattr(section, key) for key, option in tracker.further_keys.items()}
    return {key: value for key, value in values.items() if value is not None}


def _run_name(options: Mapping[str, Any]) -> str | None:
    return options.get("name") or options.get("run_name")
