"""What processes `newtune train` starts: on a machine when nobody says, and by Ray."""

from collections.abc import Mapping
from dataclasses import dataclass

from newtune.config.run import RunConfig


@dataclass(frozen=True)
class RayWorkers:
    """Processes that Ray starts."""

    count: int
    resources: Mapping[str, float]
    """What each needs; empty: what is usual."""
    run_name: str | None


def processes_of(config: RunConfig, gpus: int) -> tuple[int, str]:
    """Return the number of processes for the visible GPUs, and why."""
    if placed := placement_of_one(config):
        return 1, placed
    if config.relora_every is not None:
        return 1, "ReLoRA trains on one process"
    if config.parallel.ddp is False and config.parallel.fsdp_config is None:
        return 1, "`ddp: false`"
    return max(1, gpus), f"{gpus} GPU(s) visible"


def placement_of_one(config: RunConfig) -> str:
    """Return why the layers of one process lie on several devices; empty where they do not."""
    keys = ("device_map", "max_memory", "gpu_memory_limit")
    given = [key for key in keys if config.placement.peek(key) is not None]
    return f"`{given[0]}` spreads its layers over the devices" if given else ""


def ray_workers(config: RunConfig) -> RayWorkers | None:
    """Return what Ray is to start, or None where it starts nothing."""
    keys = config.parallel
    if not keys.use_ray:
        return None
    return RayWorkers(keys.ray_num_workers, keys.resources_per_worker or {}, keys.ray_run_name)
