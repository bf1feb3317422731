"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.training.metrics import Meter, peak_memory_bytes


class ProgressDisplay(TrainerCallback):
    """Shows step, loss, tokens per second, remaining time and memory.

    `evaluations` says what is measured after which step; each kind is taken to last as it did when
    it was last measured.
    """

    def __init__(
        self, meter: Meter, console: Console, evaluations: Mapping[int, str] | None = None
    ) -> None:
        self.meter = meter
        self.console = console
        self.evaluations = evaluations or {}
        self.seconds_of: dict[str, float] = {}
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.first_step = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Start the bar where the run starts, or is resumed."""
        self.first_step = state.global_step
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self.console,
        )
        self.task = self.bar.add_task(
            "", total=state.max_steps, completed=self.first_step, facts=""
        )
        self.bar.start()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, facts=self._facts(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print evaluations always, training losses where there is no bar."""
        logs = logs or {}
        if any(name.startswith("eval_") for name in logs):
            kind = self.evaluations.get(state.global_step, "")
            self.seconds_of[kind] = logs.get("eval_runtime", 0.0)
            self._print(evaluation_line(state.global_step, logs))
        elif "loss" in logs and self.bar is None:
            self._print(
                f"step {state.global_step}/{state.max_steps} · epoch {logs['epoch']:.2f} · "
                f"lr {logs['learning_rate']:.2e} · {self._facts(state)}"
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave the bar as it stands."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, whatever happened."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print(self, line: str) -> None:
        """Print one line as one line, however narrow the place is."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def _facts(self, state: TrainerState) -> str:
        remaining = self.remaining_seconds(state.global_step, state.max_steps)
        return (
            f"loss {self.meter.step_loss:.4f} · {self.meter.tokens_per_second():,.0f} tok/s · "
            f"{clock(remaining)} left · {peak_memory_bytes() / 1e9:.2f} GB"
        )

    def remaining_seconds(self, step: int, max_steps: int) -> float:
        """Return the time that the steps and evaluations after `step` take at today's pace."""
        evaluating = sum(
            self.seconds_of.get(kind, 0.0)
            for later, kind in self.evaluations.items()
            if step < later <= max_steps
        )
        return self.meter.seconds_per_step() * (max_steps - step) + evaluating


def evaluation_line(step: int, metrics: Mapping[str, Any]) -> str:
    """Return one line with what an evaluation found."""
    parts = [f"evaluation after step {step}"]
    if "eval_loss" in metrics:
        parts.append(f"loss {metrics['eval_loss']:.4f}")
        parts.append(f"perplexity {metrics['eval_perplexity']:.4g}")
    if "eval_exact_match" in metrics:
        parts.append(f"exact match {metrics['eval_exact_match']:.1%}")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
