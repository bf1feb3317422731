"""An optimizer's state keyed by parameter name, so that a later run may lay it out anew."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from newtune.training.muon import Joined


def named_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the optimizer's state keyed by parameter name, so that any layout can read it.

    `{"state": {name: {...}}, "param_groups": [{..., "params": [names]}]}`
    """
    names = names_in_order(optimizer, model)
    saved = optimizer.state_dict()
    return {
        "state": {names[number]: value for number, value in saved["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in saved["param_groups"]
        ],
    }


def load_named_state(optimizer: Optimizer, model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore what `named_state` returned; the order of parameters and groups may have changed.

    Raises:
        KeyError: a trained parameter without a group in `saved`.
    """
    names = names_in_order(optimizer, model)
    numbers = {name: number for number, name in enumerate(names)}
    group_of = {name: group for group in saved["param_groups"] for name in group["params"]}
    current = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {
            "state": {
                numbers[name]: value for name, value in saved["state"].items() if name in numbers
            },
            "param_groups": [
                {**group_of[names[group["params"][0]]], "params": group["params"]}
                for group in current
            ],
        }
    )
    _restore_dtypes(optimizer, dict(model.named_parameters()), saved["state"])


def names_in_order(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the names of the optimizer's parameters, group after group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _restore_dtypes(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Any]
) -> None:
    # torch casts a restored state to its parameter's dtype; a float32 state of a bfloat16 weight
    # (Adafactor) would lose bits, and the resumed run would differ.
    parts: Iterable[Optimizer] = optimizer.parts if isinstance(optimizer, Joined) else [optimizer]
    for part in parts:
        for name, values in saved.items():
            state = part.state.get(parameters[name]) if name in parameters else None
            for key, value in values.items():
                if state and isinstance(value, torch.Tensor) and state[key].dtype != value.dtype:
                    state[key] = value.to(state[key].device)
