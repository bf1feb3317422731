"""How the processes of a run are laid out: axes whose sizes multiply to the number of processes."""

import math
from collections.abc import Mapping
from typing import NoReturn

from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.ledger import Ledger
from newtune.plan.processes import ray_workers
from newtune.plan.sharing import MeshPlan

AXES: Mapping[str, str] = {
    "dp_replicate_size": "replicas",
    "dp_shard_size": "shards",
    "context_parallel_size": "context",
    "tensor_parallel_size": "tensor",
}
"""Key → axis, the outermost first: neighbours talk most."""
NOTHING: Mapping[str, tuple[int | None, ...]] = {
    "context_parallel_size": (None, 1),
    "tensor_parallel_size": (None, 1),
}
"""Sizes that share nothing, so that the other axes follow as without them."""
HYBRID = ("HYBRID_SHARD", "4", "HYBRID_SHARD_ZERO2", "5")
"""Names of FSDP1: a copy of the model on each machine, sharded over the machine's processes."""


def given_sizes(config: RunConfig) -> dict[str, int]:
    """Return the sizes of axes that the configuration gives, by key."""
    sizes = {key: getattr(config.parallel, key) for key in AXES}
    return {key: size for key, size in sizes.items() if size not in NOTHING.get(key, (None,))}


def require_processes(config: RunConfig, world: World) -> None:
    """Check, before a training, that one process alone was not meant to be several.

    Raises:
        ConfigError: the sizes of the axes ask for more than one, or Ray was to start others.
    """
    workers = ray_workers(config)
    if workers is not None and workers.count != world.size:
        message = f"is {workers.count}, but {world.size} process(es) were started, not by Ray"
        hint = "Start `newtune train` by itself, or leave `use_ray` out."
        raise ConfigError([Problem("ray_num_workers", message, hint)])
    sizes = given_sizes(config)
    if world.size == 1 and _product(sizes) > 1:
        _refuse(sizes, world)


def plan_mesh(
    config: RunConfig, world: World, ledger: Ledger, *, sharded: bool, hybrid: bool
) -> MeshPlan:
    """Return the sizes of the axes, for several processes; what is not given follows.

    `sharded`: options of FSDP are given. `hybrid`: one copy of the model on each machine.

    Raises:
        ConfigError: the sizes do not multiply to the number of processes.
    """
    sizes = given_sizes(config)
    if hybrid and not sizes:
        sizes = _by_machine(world)
        if sizes["dp_replicate_size"] == 1:
            ledger.notice(
                f"HYBRID_SHARD: all {world.size} processes are on one machine, so there is one copy"
            )
    elif not sizes:
        sizes = {"dp_shard_size" if sharded else "dp_replicate_size": world.size}
    elif (open_key := _open_axis(sizes, sharded=sharded)) and world.size % _product(sizes) == 0:
        sizes = {open_key: world.size // _product(sizes), **sizes}
    if _product(sizes) != world.size:
        _refuse(sizes, world)
    return MeshPlan(**{AXES[key]: size for key, size in sizes.items()})


def _open_axis(sizes: Mapping[str, int], *, sharded: bool) -> str | None:
    """Return the key whose size follows from the others, if there is one."""
    key = "dp_shard_size" if sharded else "dp_replicate_size"
    follows = sharded or "context_parallel_size" in sizes
    return key if follows and key not in sizes else None


def _by_machine(world: World) -> dict[str, int]:
    here = world.local_size
    if here is None or world.size % here:
        why = f"{here} of {world.size} processes are on this one"
        if here is None:
            why = "how many processes one has is not said (LOCAL_WORLD_SIZE)"
        message = f"HYBRID_SHARD keeps one copy of the model on each machine, but {why}"
        hint = "Give `dp_replicate_size` (copies) and `dp_shard_size` (processes of each)."
        raise ConfigError([Problem("fsdp_config.sharding_strategy", message, hint)])
    return {"dp_replicate_size": world.size // here, "dp_shard_size": here}


def _refuse(sizes: Mapping[str, int], world: World) -> NoReturn:
    text = " × ".join(f"{key} {size}" for key, size in sizes.items())
    product = _product(sizes)
    started = "1 process was" if world.size == 1 else f"{world.size} processes were"
    message = f"{text} = {product}, but {started} started"
    if len(sizes) == 1:
        message = f"{text}, but {started} started"
    hint = f"Start {product} processes (`--num-processes {product}` on one machine)"
    if world.size > product and world.size % product == 0:
        missing = next((key for key in AXES if key not in sizes), None)
        if missing is not None:
            hint += f", or add `{missing}: {world.size // product}`"
    raise ConfigError([Problem(next(iter(sizes)), message, f"{hint}.")])


def _product(sizes: Mapping[str, int]) -> int:
    return math.prod(sizes.values())
