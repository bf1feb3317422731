"""How a run stops before its end: signals, non-finite numbers, memory that runs out.

Each stop says where it happened, what is kept, and how to go on.
"""

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.distributed.group import ALONE, Group
from newtune.errors import Interrupted, TrainingError
from newtune.logs import notice
from newtune.plan.parts import Plan


class CutShort(Exception):  # noqa: N818 (it is not an error to obey)
    """A signal came while the model was evaluated; the evaluation is taken anew on resuming."""


class EndedByEvaluation(Exception):  # noqa: N818 (a run may end like this)
    """The evaluation that a resumed run began with ended it: no step follows."""


class StopRequest(TrainerCallback):
    """Remembers that the run shall stop, and lets the step that is under way end first.

    An evaluation is not waited for: it is cut short, and a resumed run begins with it.
    """

    def __init__(self, group: Group = ALONE) -> None:
        self.group = group
        self.signal: signal.Signals | None = None
        """What every process knows to have come to one of them."""
        self._received: signal.Signals | None = None
        self.process = os.getpid()
        self.evaluation_due = False
        """The evaluation after the last step is still to be taken."""
        self._at_once = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch Ctrl-C and SIGTERM while the block runs; a second one stops at once.

        Signals reach Python's main thread only; started from another thread, nothing is caught.
        """
        self.process = os.getpid()
        handled = (signal.SIGINT, signal.SIGTERM)
        try:
            before = {number: signal.signal(number, self._receive) for number in handled}
        except ValueError:  # not in the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the block where it stands, by CutShort.

        One of several processes cannot leave the others: they ask `agree` between two batches.
        """
        self._at_once = self.group.size == 1
        try:
            yield
        finally:
            self._at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a data loader's worker, which Ctrl-C in a terminal reaches too
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if self.group.size == 1:
            self.signal = self._received
            if not self._at_once:
                self._say_so()
        if self._at_once:
            raise CutShort

    def _say_so(self) -> None:
        assert self.signal is not None
        notice(
            f"{self.signal.name} received: the step under way is finished and a checkpoint "
            "saved; once more stops at once"
        )

    def agree(self) -> bool:
        """Tell whether a signal came to any process; all must ask."""
        if self.group.size > 1 and self.signal is None:
            number = self.group.greatest(int(self._received or 0))
            if number:  # said now: a launcher also ends the others where one process has died
                self.signal = signal.Signals(number)
                self._say_so()
        return self.signal is not None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Save and end, unless the run is at its end anyway."""
        left = state.global_step < state.max_steps or control.should_evaluate
        if self.agree() and left:
            self.evaluation_due = control.should_evaluate
            control.should_evaluate = False
            control.should_save = True
            control.should_training_stop = True
        return control

    def cut_short(self, step: int, control: TrainerControl) -> None:
        """Save and end, the evaluation after `step` being left for the resumed run."""
        assert self.signal is not None
        notice(
            f"{self.signal.name} received: the evaluation after step {step} is cut short and a "
            "checkpoint saved; the resumed run begins with it"
        )
        self.evaluation_due = True
        control.should_save = True
        control.should_training_stop = True

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave the loop, the checkpoint being saved.

        Raises:
            Interrupted: a stop was asked for before the last step.
        """
        left = state.global_step < state.max_steps or self.evaluation_due
        if self.signal is not None and left:
            raise Interrupted(
                f"Stopped by {self.signal.name} after step {state.global_step} of "
                f"{state.max_steps}. The checkpoint is {args.output_dir}/checkpoint-"
                f"{state.global_step}; go on with `newtune train CONFIG --resume`."
            )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"evaluation_due": self.evaluation_due}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.evaluation_due = state["evaluation_due"]


def require_finite(
    losses: Sequence[float],
    grad_norm: float,
    *,
    step: int,
    rows_of: Callable[[int], Sequence[str]],
    kept: str,
    gradient_scaled: bool,
) -> None:
    """Check one step's losses (one per micro-batch) and gradient before it changes the weights.

    `rows_of(i)` says where the examples of the step's i-th micro-batch came from. With fp16's loss
    scaling (`gradient_scaled`) an infinite gradient is normal: the scaler skips the step and
    scales down.

    Raises:
        TrainingError: something is NaN or infinite.
    """
    bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
    remedy = "Lower learning_rate, set max_grad_norm, or look at these rows."
    if bad:
        index = bad[0]
        raise TrainingError(
            f"step {step}: the loss is {losses[index]} in micro-batch {index + 1} of "
            f"{len(losses)}, rows: {_listed(rows_of(index))}. {kept} {remedy}"
        )
    if not math.isfinite(grad_norm) and not gradient_scaled:
        rows = [row for index in range(len(losses)) for row in rows_of(index)]
        raise TrainingError(
            f"step {step}: the gradient is not finite (norm {grad_norm}) though the losses are, "
            f"rows: {_listed(rows)}. {kept} {remedy}"
        )


def require_finite_elsewhere(losses: Sequence[Sequence[float]], *, step: int) -> None:
    """Check the losses of every process (by rank, one per micro-batch).

    Raises:
        TrainingError: one is NaN or infinite; the process that had it names the rows.
    """
    for rank, of_rank in enumerate(losses):
        if not all(map(math.isfinite, of_rank)):
            raise TrainingError(f"step {step}: the loss of process {rank} is not finite; see there")


def _listed(rows: Sequence[str]) -> str:
    shown = "; ".join(rows[:32])
    return f"{shown}; ... ({len(rows)} in all)" if len(rows) > 32 else shown


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on the GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "out of memory")
    )


def out_of_memory(error: BaseException, plan: Plan, *, step: int, doing: str) -> TrainingError:
    """Return the error that says what to change, largest effect first."""
    advice = "\n".join(f"  {n}. {text}" for n, text in enumerate(memory_advice(plan, doing), 1))
    return TrainingError(
        f"step {step}: out of memory while {doing} ({str(error).splitlines()[0]}).\n"
        f"What helps, largest effect first:\n{advice}"
    )


def memory_advice(plan: Plan, doing: str) -> list[str]:
    """Return what to change for less memory, largest effect first, leaving out what is done."""
    steps, model = plan.training.steps, plan.model
    advice = []
    if doing == "evaluating" and plan.training.evaluation.rows_per_device > 1:
        advice.append("eval_batch_size: 1")
    if plan.adapter is None:
        advice.append("adapter: lora (no gradient and optimizer state for the base model)")
    if steps.rows_per_device > 1:
        rows = steps.rows_per_device
        advice.append(
            f"micro_batch_size: 1 with gradient_accumulation_steps: {steps.accumulation * rows} "
            "(the same update)"
        )
    if not model.gradient_checkpointing:
        advice.append("gradient_checkpointing: true (activations of one layer at a time)")
    if model.precision.autocast is None and model.precision.frozen_weights == "float32":
        advice.append("bf16: auto (frozen weights and activations in 16 bit)")
    advice.append("a smaller sequence_len")
    if plan.adapter is None and "8bit" not in plan.training.optimizer.name:
        advice.append("optimizer: adamw_8bit (optimizer state in 8 bit)")
    if plan.adapter is not None and plan.adapter.rank > 8:
        advice.append(f"a smaller lora_r (now {plan.adapter.rank})")
    return advice
