"""ReLoRA in a run: when a round ends, and what the optimizer forgets then."""

from typing import Any

import torch
from jaxtyping import Bool
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from newtune.logs import notice
from newtune.model.relora import require_rounds, start_round
from newtune.plan.parts import ReloraPlan


class Restarts(TrainerCallback):
    """Starts a new round of ReLoRA every so many steps; the last round goes on to the end.

    Raises:
        ModelError: the adapter trains what cannot be started anew.
    """

    def __init__(self, plan: ReloraPlan, model: PeftModel, *, total_steps: int) -> None:
        require_rounds(model)
        self.plan = plan
        self.model = model
        self.total_steps = total_steps

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """End the round where it is due, before anything is evaluated or saved."""
        step = state.global_step
        if step % self.plan.every_steps or step >= self.total_steps:
            return
        start_round(self.model)
        forget(kwargs["optimizer"], self.plan)
        notice(f"step {step}: the adapter starts anew, beside what it has learned (ReLoRA)")


def forget(optimizer: Optimizer, plan: ReloraPlan) -> None:
    """Drop a share of AdamW's state, or all of it.

    The same places go in momentum and scale: where the momentum stayed and the scale was lost, the
    next update would be the momentum over AdamW's epsilon.
    """
    if plan.prune_method == "reset":
        optimizer.state.clear()
        return
    for state in optimizer.state.values():
        momentum = state["exp_avg"]
        if plan.prune_method == "magnitude":
            dropped = _smallest(momentum, plan.prune_ratio)
        else:
            dropped = torch.rand_like(momentum, dtype=torch.float32) < plan.prune_ratio
        momentum[dropped] = 0.0
        state["exp_avg_sq"][dropped] = 0.0


def _smallest(values: Tensor, share: float) -> Bool[Tensor, "..."]:
    """Tell which values are the smallest ones, without their sign."""
    places = values.abs().flatten().argsort(stable=True)[: int(share * values.numel())]
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[places] = True
    return chosen.view(values.shape)
