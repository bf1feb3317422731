"""Muon for the hidden matrices, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from newtune.plan.parts import OptimizerPlan

Groups = list[dict[str, Any]]


def muon_with_adamw(
    groups: Groups, plan: OptimizerPlan, arguments: Mapping[str, Any], *, vocabulary: set[int]
) -> Optimizer:
    """Return Muon over the matrices, AdamW over embeddings, head, norms and biases.

    `vocabulary` holds the identities of the embeddings' and the head's parameters. Muon's update
    is scaled to AdamW's size, so that one learning rate serves both
    (https://arxiv.org/abs/2502.16982); `adjust_lr_fn: original` undoes it.
    """
    matrices, others = _split_matrices(groups, vocabulary)
    parts: list[Optimizer] = []
    if matrices:
        options = {"adjust_lr_fn": "match_rms_adamw", **arguments}
        parts.append(torch.optim.Muon(matrices, lr=plan.learning_rate, **options))
    if others:
        betas = (plan.beta1, plan.beta2)
        parts.append(torch.optim.AdamW(others, plan.learning_rate, betas, plan.epsilon))
    return Joined(parts)


def _split_matrices(groups: Groups, vocabulary: set[int]) -> tuple[Groups, Groups]:
    matrices, others = [], []
    for group in groups:
        hidden = [p for p in group["params"] if p.ndim == 2 and id(p) not in vocabulary]
        rest = [p for p in group["params"] if p.ndim != 2 or id(p) in vocabulary]
        if hidden:
            matrices.append({**group, "params": hidden})
        if rest:
            others.append({**group, "params": rest})
    return matrices, others


class Joined(Optimizer):
    """Several optimizers, each over its own parameters, that act as one.

    Their groups are shared, not copied: a schedule that sets `lr` here sets it there.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Let every part make its step."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states as one, parameters numbered through."""
        state: dict[int, Any] = {}
        groups: Groups = []
        for part in self.parts:
            own, offset = part.state_dict(), sum(len(group["params"]) for group in groups)
            state |= {number + offset: value for number, value in own["state"].items()}
            for group in own["param_groups"]:
                groups.append({**group, "params": [n + offset for n in group["params"]]})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand every part its share of what `state_dict` returned."""
        groups = list(state_dict["param_groups"])
        offset = 0
        for part in self.parts:
            own = [groups.pop(0) for _ in part.param_groups]
            count = sum(len(group["params"]) for group in own)
            part.load_state_dict(
                {
                    "state": {
                        number - offset: value
                        for number, value in state_dict["state"].items()
                        if offset <= number < offset + count
                    },
                    "param_groups": [
                        {**group, "params": [n - offset for n in group["params"]]} for group in own
                    ],
                }
            )
            offset += count
        self.param_groups = [group for part in self.parts for group in part.param_groups]
