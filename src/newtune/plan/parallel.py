"""How several processes train one model: decided before weights load."""

from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.ledger import Ledger
from newtune.plan.parts import ParallelPlan

OPTIONS = (
    "ddp",
    "ddp_backend",
    "ddp_timeout",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "ddp_find_unused_parameters",
)


def plan_parallel(config: RunConfig, world: World, ledger: Ledger) -> ParallelPlan:
    """Return how the processes work together; alone, given options are answered with a notice.

    Raises:
        ConfigError: `ddp: false` with several processes, each of which would train alone.
    """
    keys = config.parallel
    options = {key: getattr(keys, key) for key in OPTIONS}
    if world.size == 1:
        for key, value in options.items():
            if value is not None:
                ledger.notice(f"`{key}` has no effect in this run: it has one process.")
        return ledger.decide("training.parallel", ParallelPlan(), "one process")
    if keys.ddp is False:
        message = f"is false, but {world.size} processes were started: they could not share a model"
        raise ConfigError([Problem("ddp", message, "Leave it out, or start one process.")])
    plan = ParallelPlan(
        engine="ddp",
        backend=keys.ddp_backend,
        timeout_seconds=keys.ddp_timeout or ParallelPlan.timeout_seconds,
        bucket_cap_mb=keys.ddp_bucket_cap_mb,
        broadcast_buffers=keys.ddp_broadcast_buffers,
        find_unused_parameters=bool(keys.ddp_find_unused_parameters),
    )
    why = f"{world.size} processes hold the whole model each and average its gradients"
    return ledger.decide("training.parallel", plan, why)
