"""Rotary angles that depend on a length: that of the example itself, never of its neighbours.

With `dynamic` and `longrope` scaling, transformers computes the angles of a whole forward from its
longest sequence, and dynamic ones even from the longest of earlier forwards. An example would then
be trained otherwise beside a long one, in a pack as in a batch, and after a resume.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from newtune.plan.context import LENGTHS_MATTER


def angles_by_example(model: PreTrainedModel) -> None:
    """Compute each example's angles from its own length, in every forward from now on."""
    limit = changing_length(model.config)
    if limit is None:
        return
    for module in model.modules():
        own = (name for name, _ in module.named_buffers(recurse=False))
        if any(name.endswith("inv_freq") for name in own):
            module.register_forward_hook(_of_each_example(limit), with_kwargs=True)


def changing_length(config: PreTrainedConfig) -> int | None:
    """Return the length beyond which the angles follow it; None for those that never do."""
    text = config.get_text_config().to_dict()
    rope = text.get("rope_parameters") or {}
    kinds = [inner for inner in (rope, *rope.values()) if isinstance(inner, Mapping)]
    limits = [
        int(inner.get("original_max_position_embeddings") or text["max_position_embeddings"])
        for inner in kinds
        if inner.get("rope_type") in LENGTHS_MATTER
    ]
    return min(limits, default=None)


def _of_each_example(limit: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
        positions = given["position_ids"]
        if positions.max() + 1 < limit:
            return output
        rows = [_of_row(module, given, row[None]) for row in positions]
        if isinstance(output, Tensor):
            return torch.cat([torch.cat(pieces, dim=1) for pieces in rows])
        return tuple(
            torch.cat([torch.cat([piece[part] for piece in pieces], dim=1) for pieces in rows])
            for part in range(len(output))
        )

    return hook


def _of_row(module: nn.Module, given: Mapping[str, Any], positions: Tensor) -> list[Any]:
    """Return the angles of each example of a row; an example starts where a position is no next."""
    breaks = (positions[0, 1:] != positions[0, :-1] + 1).nonzero()[:, 0] + 1
    pieces = positions.tensor_split(breaks.cpu(), dim=1)
    return [_fresh(module, {**given, "position_ids": piece}) for piece in pieces]


def _fresh(module: nn.Module, given: Mapping[str, Any]) -> Any:
    """Return what a forward gives that comes after a short one, which resets dynamic angles."""
    module.forward(**{**given, "position_ids": torch.zeros_like(given["position_ids"])})
    return module.forward(**given)
