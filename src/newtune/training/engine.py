"""How the processes of a run hold one model: what every engine does, and the plainest one.

engine = start_engine(plan, model, group)    # `training/engines.py`, by `ParallelPlan.engine`

The trainer asks its engine and never which one it is. What an engine writes is whole: an ordinary
model, optimizer state by parameter name; or in parts, by the same names. So any engine goes on from
what another one wrote.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from newtune.training.checkpoint import Model, load_weights
from newtune.training.optimizer_state import load_named_state, named_state
from newtune.training.run_state import read_optimizer_state

Values = Literal["all", "trained", "none"]
"""Which values of parameters are asked for."""


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
    def whole(self, values: Values) -> Iterator[Model]:
        """Yield the model as on one process; its values are there on the first process.

        Those that are not asked for may be empty (on the meta device).
        """
        ...

    @property
    def writes_parts(self) -> bool:
        """Tell whether checkpoints hold weights and optimizer state in parts (`shards.py`)."""
        ...

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights that any engine saved."""
        ...

    def optimizer_state(self, optimizer: AcceleratedOptimizer) -> dict[str, Any]:
        """Return `named_state` with whole tensors; its values are there on the first process.

        Where parts are written, each process has its own.
        """
        ...

    def load_optimizer_state(self, optimizer: AcceleratedOptimizer, checkpoint: Path) -> None:
        """Load the optimizer's state that any engine saved."""
        ...


class Replica:
    """Every process holds the whole model; DDP averages the gradients of several."""

    forwards_together = False
    writes_parts = False

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
    def whole(self, values: Values) -> Iterator[Model]:
        """Yield the model."""
        yield self.model

    def load_weights(self, checkpoint: Path) -> None:
        """Load weights into the model."""
        load_weights(self.model, checkpoint)

    def optimizer_state(self, optimizer: AcceleratedOptimizer) -> dict[str, Any]:
        """Return the state by parameter name."""
        return named_state(optimizer, self.model)

    def load_optimizer_state(self, optimizer: AcceleratedOptimizer, checkpoint: Path) -> None:
        """Load the state by parameter name."""
        load_named_state(optimizer.optimizer, self.model, read_optimizer_state(checkpoint))
