"""A model whose layers lie on several devices: how it is loaded, and what follows from that."""

import atexit
import shutil
import tempfile
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from newtune.plan.parts import ModelPlan, PlacementPlan


def placed_loading(placement: PlacementPlan) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`.

    Weights on the disk are read from the checkpoint itself; those that are stored in another form
    go to a folder that is removed when the program ends.
    """
    arguments: dict[str, Any] = {"device_map": dict(placement.devices)}
    if placement.uses_disk:
        folder = tempfile.mkdtemp(prefix="newtune-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        arguments["offload_folder"] = folder
    return arguments


def bring_in_place(model: nn.Module, plan: ModelPlan) -> None:
    """Bring a model to its device; one that is spread over several is in its places already."""
    if plan.placement is None:
        nn.Module.to(model, torch.device(plan.device))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module into another's place; what brings its inputs and weights to it goes along."""
    hook = getattr(model.get_submodule(name), "_hf_hook", None)
    model.set_submodule(name, new)
    if hook is not None:
        add_hook_to_module(new, hook)


def input_device(model: nn.Module) -> torch.device:
    """Return where inputs go: the device of the first weights that are in memory."""
    return next(p.device for p in model.parameters() if not p.is_meta)


def stored(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    """Return a parameter's values, also of one that is fetched only when it is needed."""
    values: Tensor = load_offloaded_parameter(model, name) if tensor.is_meta else tensor
    return values
