"""Where a run stands in its stream: kept by checkpoints, reported with every log."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.training.feed import Streamed


class StreamPlace(TrainerCallback):
    """Follows the steps that are done; what the stream has read ahead of them does not count."""

    def __init__(self, batches: Streamed, accumulation: int) -> None:
        self.batches = batches
        self.accumulation = accumulation
        self.index = 0
        """Micro-batches trained."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin where the run does, or is resumed."""
        self.index = state.global_step * self.accumulation

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Count the step."""
        self.index = state.global_step * self.accumulation

    def report(self) -> Mapping[str, float]:
        """Return what was read so far."""
        return self.batches.report_at(self.index)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the place of the next step's first micro-batch."""
        return self.batches.state_at(self.index)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to the place."""
        self.batches.restore(state)
