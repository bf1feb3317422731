"""The engines by the name that a plan gives them."""

from collections.abc import Callable, Mapping

from newtune.distributed.group import Group
from newtune.plan.sharing import ParallelPlan
from newtune.training.checkpoint import Model
from newtune.training.engine import Engine, Replica
from newtune.training.fsdp import FullySharded

Start = Callable[[Model, ParallelPlan, Group], Engine]
"""Makes an engine of a model, in place; the process group exists already."""


def _start_zero(model: Model, plan: ParallelPlan, group: Group) -> Engine:
    from newtune.training.zero import Zero  # its package is an extra, and slow to import

    return Zero.start(model, plan, group)


ENGINES: Mapping[str, Start] = {
    "none": lambda model, plan, group: Replica(model),
    "ddp": lambda model, plan, group: Replica(model),
    "fsdp2": FullySharded.start,
    "zero": _start_zero,
    "tensor": FullySharded.start,
}


def start_engine(model: Model, plan: ParallelPlan, group: Group) -> Engine:
    """Return the plan's engine, which holds the model from now on."""
    return ENGINES[plan.engine](model, plan, group)
