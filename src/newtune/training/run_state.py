"""What a resumable checkpoint holds besides weights, and how it comes back."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler

from newtune.model.shards import is_sharded
from newtune.run_dir import write_json
from newtune.training.checkpoint import (
    OPTIMIZER_FILE,
    SCHEDULER_FILE,
    STATE_FILE,
    random_state_files,
    write_tensors,
)
from newtune.training.shards import GROUPS_FILE, optimizer_of_shards


class Remembers(Protocol):
    """Something whose memory a checkpoint keeps."""

    def state(self) -> dict[str, Any]:
        """Return the memory as JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the memory back."""
        ...


def save_run_state(
    folder: Path,
    optimizer: Mapping[str, Any],
    schedule: LRScheduler,
    remembered: Mapping[str, Remembers],
    random: Sequence[Mapping[str, Any]],
    *,
    in_parts: bool = False,
) -> None:
    """Write optimizer (`named_state`), schedule, what is remembered, random states by rank.

    With `in_parts`, the optimizer's tensors lie there already.
    """
    if in_parts:
        write_tensors(folder / GROUPS_FILE, optimizer["param_groups"])
    else:
        write_tensors(folder / OPTIMIZER_FILE, optimizer)
    write_tensors(folder / SCHEDULER_FILE, schedule.state_dict())
    for name, states in zip(random_state_files(len(random)), random, strict=True):
        write_tensors(folder / name, states)
    write_json(folder / STATE_FILE, {name: part.state() for name, part in remembered.items()})


def load_run_state(
    folder: Path,
    load_optimizer: Callable[[], None],
    schedule: LRScheduler,
    remembered: Mapping[str, Remembers],
) -> None:
    """Load what `save_run_state` wrote, but for the random states."""
    load_optimizer()
    load_schedule(schedule, torch.load(folder / SCHEDULER_FILE, weights_only=True))
    memories = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    for name, part in remembered.items():
        if name in memories:
            part.restore(memories[name])


def read_optimizer_state(checkpoint: Path) -> dict[str, Any]:
    """Return the optimizer's whole state (`named_state`)."""
    if is_sharded(checkpoint):
        return optimizer_of_shards(checkpoint, None)
    state: dict[str, Any] = torch.load(
        checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True
    )
    return state


def load_schedule(schedule: LRScheduler, saved: Mapping[str, Any]) -> None:
    """Take a schedule's state back, also where another engine had other groups of parameters.

    The optimizer is loaded before: its groups hold their rates.
    """
    groups = schedule.optimizer.param_groups
    if len(saved["base_lrs"]) != len(groups):
        saved = {
            **saved,
            "base_lrs": [group["initial_lr"] for group in groups],
            "_last_lr": [group["lr"] for group in groups],
            "lr_lambdas": [None] * len(groups),
        }
    schedule.load_state_dict(dict(saved))
