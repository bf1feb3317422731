"""Checkpoints in parts: each process writes and reads its own, and none holds the whole.

checkpoint-N/
  sharded/              torch.distributed.checkpoint: `model.NAME`, `optimizer.NAME.STATE`
  optimizer_groups.pt   the optimizer's groups, by parameter name
  config.json or adapter_config.json, tokenizer, scheduler, random states, ... as in any checkpoint

Weights have the names that they have in safetensors. Read on other processes than wrote them, or
by another engine, they are laid out anew.
"""

import copy
import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from newtune.distributed.group import Group
from newtune.errors import ModelError, TrainingError
from newtune.model.shards import FOLDER, MODEL, OPTIMIZER, Shards
from newtune.training.checkpoint import PARTS, Model, bytes_to_write, cannot_save, require_room

GROUPS_FILE = "optimizer_groups.pt"


def write_parts(
    root: Path, step: int, model: Model, optimizer: Mapping[str, Any] | None, group: Group
) -> None:
    """Let every process write its parts, of weights and state (`named_state`), aside.

    Raises:
        TrainingError: a process could not write, or what lies there is not whole.
    """
    folder = _aside(root, step)
    tensors = {MODEL + name: tensor for name, tensor in saved_tensors(model).items()}
    tensors |= _states(optimizer) if optimizer is not None else {}
    needed = bytes_to_write(model, optimizer)
    try:
        group.on_main(lambda: _make_room(folder, needed))
        _save(tensors, folder)
        group.on_main(lambda: _require_whole(folder, tensors))
    except OSError as error:
        if group.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        raise TrainingError(cannot_save(error, root, step)) from error


def take_parts(root: Path, step: int, model: Model, checkpoint: Path) -> None:
    """Move what the processes wrote into a checkpoint, beside the (empty) model's configuration."""
    _aside(root, step).rename(checkpoint / FOLDER)
    write_configuration(model, checkpoint)


def _aside(root: Path, step: int) -> Path:
    return root / f"checkpoint-{step}{PARTS}"


def _make_room(folder: Path, needed_bytes: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    require_room(folder, needed_bytes)


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        save(tensors, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        rank, (first, _) = next(iter(error.failures.items()))
        number = first.errno if isinstance(first, OSError) else None
        raise OSError(number or errno.EIO, f"process {rank}: {first}") from error


def _require_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if faults := list(Shards(folder).faults(expected)):
        raise OSError(errno.EIO, f"what lies there is not whole: {'; '.join(faults[:4])}")


def _states(optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"{OPTIMIZER}{name}.{key}": value
        for name, state in optimizer["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def saved_tensors(model: Model) -> dict[str, Tensor]:
    """Return what is saved of a model, by its names in safetensors; they share its memory."""
    if isinstance(model, PeftModel):
        named: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
        return named
    first: dict[int, str] = {}  # tied weights are written once
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    state = model.state_dict()
    return {name: state[name] for name in first.values()}


def write_configuration(model: Model, folder: Path) -> None:
    """Write what `from_pretrained` reads beside weights."""
    if isinstance(model, PeftModel):
        adapter = copy.deepcopy(model.peft_config[model.active_adapter])
        adapter.inference_mode = True
        adapter.save_pretrained(str(folder))
        return
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def load_weight_shards(model: Model, checkpoint: Path) -> None:
    """Read this process's parts of the weights into the model; every process must call it.

    Raises:
        TrainingError: the checkpoint is of another model, or broken.
    """
    shards = Shards.of(checkpoint)
    room = {MODEL + name: tensor for name, tensor in saved_tensors(model).items()}
    saved = {name: shape for name, shape in shards.shapes.items() if name.startswith(MODEL)}
    if saved != {name: tuple(tensor.shape) for name, tensor in room.items()}:
        other = sorted(saved.keys() ^ room.keys()) or ["shapes differ"]
        raise TrainingError(f"{checkpoint} does not fit this model: {', '.join(other[:6])}")
    try:
        shards.fill(room)
    except ModelError as error:
        raise TrainingError(str(error)) from error


def optimizer_of_shards(checkpoint: Path, model: Model | None) -> dict[str, Any]:
    """Return the optimizer's state (`named_state`) in parts, as a model's parameters are sharded.

    Every process must call it. Without a model the tensors are whole, and no other process is
    asked.
    """
    shards = Shards.of(checkpoint)
    if model is None:
        tensors = shards.below(OPTIMIZER)
    else:
        room = _room(shards, model)
        shards.fill(room)
        tensors = {key.removeprefix(OPTIMIZER): value for key, value in room.items()}
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        state.setdefault(name, {})[kind] = tensor
    groups = torch.load(checkpoint / GROUPS_FILE, map_location="cpu", weights_only=True)
    return {"state": state, "param_groups": groups}


def _room(shards: Shards, model: Model) -> dict[str, Tensor]:
    """Return room for the state of each parameter, laid out as the parameter is."""
    parameters = dict(model.named_parameters())
    room: dict[str, Tensor] = {}
    for key, item in shards.tensors.items():
        like = parameters.get(key.removeprefix(OPTIMIZER).rpartition(".")[0])
        if not key.startswith(OPTIMIZER) or like is None:
            continue
        dtype = item.properties.dtype
        if like.shape == item.size:
            room[key] = torch.empty_like(like.detach(), dtype=dtype)
        else:  # a count of steps
            room[key] = torch.empty(item.size, dtype=dtype)
    return room
