"""What a run reports: loss, rate, tokens, speed and memory per log, one JSON line each.

Loss is a sum and a count: a reported loss is the sum over the trained tokens of the steps since
the last report, divided by their number.
"""

import json
import math
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.objectives.causal_lm import trained_tokens
from newtune.run_dir import read_json_lines
from newtune.types import Batch


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of the micro-batches of one step."""

    tokens: int
    """Tokens of examples, trained or not; padding left out."""
    trained_tokens: int


def count_tokens(batches: Sequence[Batch], pad_id: int | None) -> TokenCounts:
    """Count the tokens of a step's micro-batches, which lie on the CPU still."""
    return TokenCounts(
        tokens=sum(batch["input_ids"].numel() - padding_tokens(batch, pad_id) for batch in batches),
        trained_tokens=sum(int(trained_tokens(batch["labels"])) for batch in batches),
    )


def padding_tokens(batch: Batch, pad_id: int | None) -> int:
    """Count the padding: the last example of a row, if it consists of pad tokens only."""
    if pad_id is None:
        return 0
    total = 0
    for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        last_start = int((positions == 0).nonzero()[-1])
        if bool((ids[last_start:] == pad_id).all()):
            total += len(ids) - last_start
    return total


@dataclass
class Window:
    """Sums over the steps since the last report.

    Saved with a checkpoint, so that a resumed run reports the same numbers.
    """

    loss_sum: float = 0.0
    trained_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


PACE_STEPS = 20
"""The pace is that of so many last steps."""


@dataclass
class Meter:
    """Adds up what the steps of a run did."""

    window: Window
    tokens: int = 0
    """Since the start of the run, over all sessions."""
    trained_tokens: int = 0
    step_loss: float = 0.0
    """Loss of the last step, in nats per trained token."""
    further: Callable[[], Mapping[str, float]] = dict
    """More to report, by whoever knows it."""
    _step_tokens: int = 0
    _mark: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=PACE_STEPS))

    @classmethod
    def new(cls) -> "Meter":
        """Return a meter that has seen nothing."""
        return cls(Window(), _mark=time.monotonic())

    def add_step(self, loss_sum: float, counts: TokenCounts) -> None:
        """Add one step's loss (summed over its trained tokens, in nats) and tokens."""
        self.step_loss = loss_sum / max(1, counts.trained_tokens)
        self.window.loss_sum += loss_sum
        self.window.trained_tokens += counts.trained_tokens
        self.window.tokens += counts.tokens
        self.tokens += counts.tokens
        self._step_tokens = counts.tokens
        self.trained_tokens += counts.trained_tokens

    def restart_clock(self) -> None:
        """Leave out the time since the last call: it went to evaluating or saving."""
        self._mark = time.monotonic()

    def add_time(self) -> None:
        """Add the time since the last call to the window: a step has ended."""
        now = time.monotonic()
        self.window.seconds += now - self._mark
        self._recent.append((now - self._mark, self._step_tokens))
        self._mark = now

    def seconds_per_step(self) -> float:
        """Return the time of a step, evaluating and saving left out, over the last few."""
        return sum(seconds for seconds, _ in self._recent) / max(1, len(self._recent))

    def tokens_per_second(self) -> float:
        """Return the tokens per second of the last few steps, evaluating and saving left out."""
        seconds = sum(seconds for seconds, _ in self._recent)
        return sum(tokens for _, tokens in self._recent) / seconds if seconds else 0.0

    def report(self) -> dict[str, float]:
        """Return the window's values and start a new window."""
        window, self.window = self.window, Window()
        return {
            "loss": window.loss_sum / max(1, window.trained_tokens),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "tokens_per_second": round(window.tokens / window.seconds, 1) if window.seconds else 0,
            "memory_bytes": peak_memory_bytes(),
            **self.further(),
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "window": {entry.name: getattr(self.window, entry.name) for entry in fields(Window)},
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.window = Window(**state["window"])
        self.tokens, self.trained_tokens = state["tokens"], state["trained_tokens"]


def peak_memory_bytes() -> int:
    """Return the peak memory: of the tensors on the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class MeterClock(TrainerCallback):
    """Tells the meter when the run starts and when a step has ended."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Start the clock, and the peak of the GPU's memory anew."""
        self.meter.restart_clock()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Add the step's time."""
        self.meter.add_time()


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl`, flushed line by line.

    A resumed run first drops the lines after its checkpoint, so that the file reads as if the run
    had never stopped; also the last evaluation, where `evaluation_due` says it is taken again.
    """

    def __init__(self, path: Path, evaluation_due: Callable[[], bool] = lambda: False) -> None:
        self.path = path
        self.evaluation_due = evaluation_due

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Start the file, or cut it back to the step that is resumed from."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        step, lines = state.global_step, read_json_lines(self.path) if state.global_step else []
        kept = [
            line
            for line in lines
            if line["step"] < step
            or (line["step"] == step and not (self.evaluation_due() and "eval_runtime" in line))
        ]
        aside = self.path.with_suffix(".partial")
        aside.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
        os.replace(aside, self.path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one line."""
        line = {"step": state.global_step, **(logs or {}), "time": round(time.time(), 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")


def perplexity(loss: float) -> float:
    """Return e^loss, infinity where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf
