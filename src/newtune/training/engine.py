"""How the processes of a run hold one model: what every engine does, and the plainest one.

engine = start_engine(plan, model, group)    # `training/engines.py`, by `ParallelPlan.engine`

The trainer asks its engine and never which one it is. What an engine writes is whole: an ordinary
model, optimizer state by parameter name. So any engine goes on from what another one wrote.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from newtune.training.checkpoint import Model
from newtune.training.optimizer_state import load_named_state, named_state


class Engine(Protocol):
    """One way to hold a model. Every process calls the same methods in the same order."""

    @property
    def forwards_together(self) -> bool:
        """Tell whether a forward needs every process, so that all must compute as many."""
        ...

    def prepare(self, optimizer: Optimizer, trainer: Trainer) -> Optimizer:
        """Return the optimizer to step; tell the Trainer what it must not do to the model itself.

        Called once, before accelerate prepares model and optimizer.
        """
        ...

    def backward(self, loss: Tensor, accelerator: Accelerator) -> None:
        """Add a micro-batch's gradient, averaged over the processes at the end of a step."""
        ...

    def clip(self, model: nn.Module, max_norm: float, accelerator: Accelerator) -> Tensor:
        """Clip the step's gradient to a norm, and return the norm that it had."""
        ...

    def end_evaluation(self) -> None:
        """Drop what forwards without a backward left behind."""
        ...

    @contextmanager
    def whole(self, *, trained_only: bool) -> Iterator[Model]:
        """Yield the model as on one process; its values are there on the first process.

        With `trained_only`, what is frozen may be empty (on the meta device).
        """
        ...

    def load(self, read: Callable[[Model], None]) -> None:
        """Let `read` load weights into the model as on one process, and take them over."""
        ...

    def optimizer_state(self, optimizer: AcceleratedOptimizer) -> dict[str, Any]:
        """Return `named_state` with whole tensors; its values are there on the first process."""
        ...

    def load_optimizer_state(
        self, optimizer: AcceleratedOptimizer, saved: Mapping[str, Any]
    ) -> None:
        """Take over what `optimizer_state` of any engine returned."""
        ...


class Replica:
    """Every process holds the whole model; DDP averages the gradients of several."""

    forwards_together = False

    def __init__(self, model: Model) -> None:
        self.model = model

    def prepare(self, optimizer: Optimizer, trainer: Trainer) -> Optimizer:
        """Leave everything to accelerate."""
        return optimizer

    def backward(self, loss: Tensor, accelerator: Accelerator) -> None:
        """Add a micro-batch's gradient."""
        accelerator.backward(loss)

    def clip(self, model: nn.Module, max_norm: float, accelerator: Accelerator) -> Tensor:
        """Clip the gradient, which every process holds."""
        norm: Tensor = accelerator.clip_grad_norm_(model.parameters(), max_norm)
        return norm

    def end_evaluation(self) -> None:
        """Do nothing."""

    @contextmanager
    def whole(self, *, trained_only: bool) -> Iterator[Model]:
        """Yield the model."""
        yield self.model

    def load(self, read: Callable[[Model], None]) -> None:
        """Load weights into the model."""
        read(self.model)

    def optimizer_state(self, optimizer: AcceleratedOptimizer) -> dict[str, Any]:
        """Return the state by parameter name."""
        return named_state(optimizer, self.model)

    def load_optimizer_state(
        self, optimizer: AcceleratedOptimizer, saved: Mapping[str, Any]
    ) -> None:
        """Take the state over."""
        load_named_state(optimizer.optimizer, self.model, saved)
