"""When things happen in a run: epochs, logs, evaluations and saves by the plan; early stops."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.distributed.watch import Watch
from newtune.errors import TrainingError
from newtune.logs import notice
from newtune.plan.facts import ENDLESS
from newtune.plan.parts import EvaluationPlan, StepPlan, TrainingPlan
from newtune.training.metrics import Meter


def epoch_after(step: int, steps_in_epoch: Sequence[int], *, last_epoch_steps: int) -> float:
    """Return how many epochs of data `step` updates have seen.

    The run may end within its last epoch, which would have had `last_epoch_steps`.
    """
    start = 0
    for epoch, steps in enumerate(steps_in_epoch):
        is_last = epoch == len(steps_in_epoch) - 1
        if step <= start + steps:
            return epoch + (step - start) / (last_epoch_steps if is_last else steps)
        start += steps
    raise ValueError(f"step {step} is beyond the run's {start} steps")


def whole_last_epoch(plan: StepPlan, packs_in_epoch: Callable[[int], int]) -> int:
    """Return the steps that the last epoch has when it is not cut off.

    A stream's epoch has no end: its run counts as one.
    """
    packs = packs_in_epoch(len(plan.steps_in_epoch) - 1)
    return plan.steps_in_epoch[-1] if packs == ENDLESS else math.ceil(packs / plan.rows_per_step)


class Marks(TrainerCallback):
    """Says to the watch which step is under way; what comes first in a step is its data."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first step comes, perhaps after an evaluation."""
        self.watch.at("data", state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The next step comes."""
        self.watch.at("data", state.global_step + 1)


class Cadence(TrainerCallback):
    """Sets the true epoch and decides when to log, evaluate, save and end, by the plan alone.

    It stands in for transformers' DefaultFlowCallback.
    """

    def __init__(
        self, plan: TrainingPlan, *, evaluation_steps: frozenset[int], last_epoch_steps: int
    ) -> None:
        self.plan = plan
        self.evaluation_steps = evaluation_steps
        self.last_epoch_steps = last_epoch_steps

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Decide what follows this update."""
        step, last = state.global_step, self.plan.steps.total_steps
        state.epoch = epoch_after(
            step, self.plan.steps.steps_in_epoch, last_epoch_steps=self.last_epoch_steps
        )
        every = max(1, self.plan.logging_steps)
        control.should_log = step % every == 0 or step == last
        control.should_evaluate = step in self.evaluation_steps
        control.should_save = step in self.plan.save.at_steps
        if step >= last:
            control.should_training_stop = True
        return control


class EarlyStopping(TrainerCallback):
    """Ends the run when the best metric has not improved for `patience` evaluations in a row."""

    def __init__(self, plan: EvaluationPlan, *, patience: int) -> None:
        self.plan = plan
        self.patience = patience
        self.best: float | None = None
        self.without_improvement = 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        """Count the evaluations without improvement."""
        value = (metrics or {}).get(self.plan.best_metric)
        if value is None or state.global_step == 0:
            return control
        if self._improves(value):
            self.best, self.without_improvement = value, 0
        else:
            self.without_improvement += 1
        if self.without_improvement >= self.patience:
            notice(
                f"early stop after step {state.global_step}: {self.plan.best_metric} has not "
                f"improved on {self.best:.4g} for {self.without_improvement} evaluations"
            )
            control.should_training_stop = True
        return control

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return True
        gain = value - self.best if self.plan.greater_is_better else self.best - value
        return gain > self.plan.early_stopping_threshold

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"best": self.best, "without_improvement": self.without_improvement}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.best = state["best"]
        self.without_improvement = state["without_improvement"]


class LossWatchdog(TrainerCallback):
    """Stops a run whose loss stays above a threshold."""

    def __init__(self, meter: Meter, *, threshold: float, patience: int) -> None:
        self.meter = meter
        self.threshold = threshold
        self.patience = patience
        self.above = 0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Count the steps above the threshold.

        Raises:
            TrainingError: the patience has run out.
        """
        self.above = self.above + 1 if self.meter.step_loss > self.threshold else 0
        if self.above >= self.patience:
            raise TrainingError(
                f"step {state.global_step}: the loss ({self.meter.step_loss:.4g}) has been above "
                f"loss_watchdog_threshold ({self.threshold:g}) for {self.above} steps. Lower "
                "learning_rate, lengthen the warm-up, or raise the threshold."
            )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"above": self.above}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.above = state["above"]


def watchers(plan: TrainingPlan, meter: Meter) -> dict[str, EarlyStopping | LossWatchdog]:
    """Return the callbacks that may end a run early, under the names a checkpoint keeps them by."""
    found: dict[str, EarlyStopping | LossWatchdog] = {}
    if plan.evaluation.early_stopping_patience is not None:
        patience = plan.evaluation.early_stopping_patience
        found["early_stopping"] = EarlyStopping(plan.evaluation, patience=patience)
    if plan.loss_watchdog_threshold is not None:
        found["watchdog"] = LossWatchdog(
            meter, threshold=plan.loss_watchdog_threshold, patience=plan.loss_watchdog_patience
        )
    return found
