"""How many processes `newtune train` starts on a machine when nobody says."""

from newtune.config.run import RunConfig


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
