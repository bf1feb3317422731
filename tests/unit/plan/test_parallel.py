"""How several processes work together, as the plan has it and as the Trainer gets it."""

import dataclasses
from pathlib import Path

import pytest

from configs import valid
from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.plan.ledger import Ledger
from newtune.plan.parallel import plan_parallel
from newtune.plan.parts import ParallelPlan
from newtune.training.arguments import training_arguments
from runs import TinyRun

ONE = World(0, 1, "cpu", 0, bf16_is_fast=False)
TWO = dataclasses.replace(ONE, size=2)
GIVEN = {
    "ddp": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 77,
    "ddp_bucket_cap_mb": 3,
    "ddp_broadcast_buffers": False,
    "ddp_find_unused_parameters": True,
}


def test_given_options_reach_the_trainer(tmp_path: Path) -> None:
    plan = plan_parallel(valid(**GIVEN), TWO, Ledger())
    assert plan.backend == "gloo"
    # accelerate takes a backend only where there is a group: tests/distributed
    parallel = dataclasses.replace(plan, backend=None)
    arguments = training_arguments(
        TinyRun(tmp_path, training={"parallel": parallel}).plan(), tmp_path
    )
    for key, value in GIVEN.items():
        if key not in ("ddp", "ddp_backend"):
            assert getattr(arguments, key) == value


def test_nothing_given_is_plain_data_parallelism() -> None:
    assert plan_parallel(valid(), TWO, Ledger()) == ParallelPlan(engine="ddp")


@pytest.mark.parametrize("key", GIVEN)
def test_alone_each_option_is_answered(key: str) -> None:
    ledger = Ledger()
    assert plan_parallel(valid(**{key: GIVEN[key]}), ONE, ledger) == ParallelPlan()
    assert ledger.notices == (f"`{key}` has no effect in this run: it has one process.",)


def test_processes_that_would_train_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 processes were started"):
        plan_parallel(valid(ddp=False), TWO, Ledger())
