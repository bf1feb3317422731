"""Rows of a trained matrix that stay as they are, bit for bit.

Their gradient is nothing, so that it counts in no norm; and after every step of the optimizer,
which may decay weights or move them by old momentum, they are written back.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from newtune.plan.parts import Plan
from newtune.plan.unfrozen import Rows, tied_head, trained_rows


def freeze_rows(model: nn.Module, optimizer: Optimizer, trained: Mapping[str, Rows]) -> None:
    """Keep all rows but the trained ones of the named parameters, whatever the optimizer does."""
    parameters = dict(model.named_parameters())
    for name, rows in trained.items():
        weight = parameters[name]
        frozen = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
        for start, stop in rows:
            frozen[start:stop] = False
        weight.register_hook(_without(frozen))  # type: ignore[no-untyped-call]
        optimizer.register_step_post_hook(_write_back(weight, frozen))


def trained_parts(model: nn.Module, plan: Plan) -> Mapping[str, Rows]:
    """Return the rows that are trained of each parameter that is not trained as a whole."""
    patterns, head = plan.model.unfrozen_parameters, tied_head(plan.model_facts)
    if plan.adapter is not None or not patterns:
        return {}
    trained = (name for name, p in model.named_parameters() if p.requires_grad)
    rows = {name: trained_rows(name, head, patterns) for name in trained}
    return {name: parts for name, parts in rows.items() if parts is not None}


def _without(frozen: Tensor) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(frozen[:, None], 0)

    return hook


def _write_back(weight: nn.Parameter, frozen: Tensor) -> Callable[..., None]:
    kept = weight.detach()[frozen].clone()

    def hook(*_: Any) -> None:
        with torch.no_grad():
            weight[frozen] = kept

    return hook
