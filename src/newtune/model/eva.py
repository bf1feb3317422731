"""EVA: an adapter that starts from what its layers see of the training data."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from peft import PeftModel, initialize_lora_eva_weights
from torch import Tensor

from newtune.errors import ModelError
from newtune.logs import notice
from newtune.model.head import compute_loss_sum
from newtune.plan.facts import Dtype
from newtune.plan.parts import AdapterPlan
from newtune.types import IGNORE_INDEX, Batch

MOST_BATCHES = 64
"""Micro-batches that are looked at, again and again until the directions no longer turn."""
MOST_FORWARDS = 2_000


class Batches(Protocol):
    """Micro-batches by index."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> Batch:
        """Return one."""
        ...


def start_from_data(
    model: PeftModel, plan: AdapterPlan, batches: Batches, *, autocast: Dtype | None
) -> None:
    """Set the A matrices to the main directions of their layers' inputs at trained tokens.

    Every layer keeps the plan's rank (rho = 1 of https://arxiv.org/abs/2410.07170): the B matrices
    are zero, so that the model is unchanged.

    Raises:
        ModelError: no micro-batch has as many trained tokens as the rank; nothing converges.
    """
    chosen = _rich_batches(batches, plan.rank)
    if not chosen:
        raise ModelError(
            f"peft_init_lora_weights: `eva` needs micro-batches with at least lora_r ({plan.rank}) "
            "trained tokens, and there is none. Raise `micro_batch_size`, or leave the key out."
        )
    dtype = getattr(torch, autocast) if autocast else None
    forward = _Forward()
    with (
        warnings.catch_warnings(),
        torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        warnings.filterwarnings("ignore", message="the following layers were initialized with")
        initialize_lora_eva_weights(
            model,
            cast("Any", chosen),
            forward_fn=forward,
            prepare_model_inputs_fn=_trained_places,
            prepare_layer_inputs_fn=_rows_at,
            show_progress_bar=False,
        )
    notice(f"eva: the adapter starts from {forward.done} forwards over {len(chosen)} micro-batches")


@dataclass(frozen=True)
class _Inputs:
    """A batch as PEFT hands it around."""

    batch: Batch

    def to(self, device: torch.device) -> "_Inputs":
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.batch.items()}
        return _Inputs(cast("Batch", moved))


@dataclass
class _Forward:
    """Runs a batch through the model and counts."""

    done: int = 0

    def __call__(self, model: PeftModel, inputs: _Inputs) -> None:
        if self.done == MOST_FORWARDS:
            raise ModelError(
                f"peft_init_lora_weights: `eva` found no steady directions in {self.done} "
                "forwards. Lower `lora_r`, or leave the key out."
            )
        self.done += 1
        compute_loss_sum(model, inputs.batch)


def _rich_batches(batches: Batches, rank: int) -> list[_Inputs]:
    found = []
    for index in range(min(len(batches), MOST_BATCHES)):
        batch = batches[index]
        if int((batch["labels"] != IGNORE_INDEX).sum()) >= rank:
            found.append(_Inputs(batch))
    return found


def _trained_places(inputs: _Inputs, config: object) -> Tensor:
    return (inputs.batch["labels"].flatten() != IGNORE_INDEX).nonzero().flatten()


def _rows_at(layer_input: Tensor | Iterable[Tensor], places: Tensor, name: str) -> Tensor:
    states = layer_input if isinstance(layer_input, Tensor) else next(iter(layer_input))
    return states.reshape(-1, states.shape[-1])[places]
