"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.training.metrics import Meter, peak_memory_bytes


class ProgressDisplay(TrainerCallback):
    """Shows step, loss, tokens per second, remaining time and memory."""

    def __init__(self, meter: Meter, console: Console) -> None:
        self.meter = meter
        self.console = console
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.first_step = 0
        self.started = 0.0
        self.tokens_before = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Start the bar where the run starts, or is resumed."""
        self.first_step, self.started = state.global_step, time.monotonic()
        self.tokens_before = self.meter.tokens
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
            self.console.print(evaluation_line(state.global_step, logs), highlight=False)
        elif "loss" in logs and self.bar is None:
            self.console.print(
                f"step {state.global_step}/{state.max_steps} · epoch {logs['epoch']:.2f} · "
                f"lr {logs['learning_rate']:.2e} · {self._facts(state)}",
                highlight=False,
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

    def _facts(self, state: TrainerState) -> str:
        seconds = max(1e-9, time.monotonic() - self.started)
        done = max(1, state.global_step - self.first_step)
        remaining = seconds / done * (state.max_steps - state.global_step)
        speed = (self.meter.tokens - self.tokens_before) / seconds
        return (
            f"loss {self.meter.step_loss:.4f} · {speed:,.0f} tok/s · {clock(remaining)} left · "
            f"{peak_memory_bytes() / 1e9:.2f} GB"
        )


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
