"""The sizes of a mesh's axes multiply to the number of processes, or the arithmetic is shown."""

import dataclasses
from typing import Any

import pytest

from configs import valid
from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.plan.ledger import Ledger
from newtune.plan.mesh import require_processes
from newtune.plan.parallel import plan_parallel
from newtune.plan.sharing import MeshPlan

ONE = World(0, 1, "cpu", 0, bf16_is_fast=False)
FOUR = dataclasses.replace(ONE, size=4, local_size=2)
FSDP = {"fsdp_config": {"reshard_after_forward": True}}


@pytest.mark.parametrize(
    ("given", "engine", "mesh"),
    [
        ({}, "ddp", MeshPlan(4, 1)),
        ({"dp_replicate_size": 4}, "ddp", MeshPlan(4, 1)),
        (FSDP, "fsdp2", MeshPlan(1, 4)),
        ({"dp_shard_size": 4}, "fsdp2", MeshPlan(1, 4)),
        ({"dp_shard_size": 2, "dp_replicate_size": 2}, "fsdp2", MeshPlan(2, 2)),
        ({**FSDP, "dp_replicate_size": 2}, "fsdp2", MeshPlan(2, 2)),
        ({"fsdp": ["hybrid_shard"]}, "fsdp2", MeshPlan(2, 2)),
        ({"fsdp_config": {"sharding_strategy": "HYBRID_SHARD_ZERO2"}}, "fsdp2", MeshPlan(2, 2)),
        ({"fsdp_config": {"reshard_after_forward": "HYBRID_SHARD"}}, "fsdp2", MeshPlan(2, 2)),
        ({"fsdp": ["hybrid_shard"], "dp_replicate_size": 1}, "fsdp2", MeshPlan(1, 4)),
    ],
)
def test_the_axes_follow(given: dict[str, Any], engine: str, mesh: MeshPlan) -> None:
    plan = plan_parallel(valid(**given), FOUR, Ledger())
    assert (plan.engine, plan.mesh) == (engine, mesh)


def test_copies_keep_what_their_strategy_keeps() -> None:
    for name, reshards in {"HYBRID_SHARD": True, "hybrid_shard_zero2": False, 4: True}.items():
        config = valid(fsdp_config={"sharding_strategy": name})
        plan = plan_parallel(config, FOUR, Ledger())
        assert plan.fsdp is not None
        assert plan.fsdp.reshard_after_forward is reshards


def test_one_machine_has_one_copy_and_says_so() -> None:
    ledger, here = Ledger(), dataclasses.replace(FOUR, local_size=4)
    assert plan_parallel(valid(fsdp=["hybrid_shard"]), here, ledger).mesh == MeshPlan(1, 4)
    said = "HYBRID_SHARD: all 4 processes are on one machine, so there is one copy"
    assert said in ledger.notices


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"dp_shard_size": 2, "dp_replicate_size": 4},
            "dp_replicate_size 4 × dp_shard_size 2 = 8, but 4 processes were started. "
            "Start 8 processes (`--num-processes 8` on one machine).",
        ),
        (
            {"dp_shard_size": 2},
            "dp_shard_size 2, but 4 processes were started. "
            "Start 2 processes (`--num-processes 2` on one machine), "
            "or add `dp_replicate_size: 2`.",
        ),
        ({**FSDP, "dp_replicate_size": 3}, "dp_replicate_size 3, but 4 processes were started"),
    ],
)
def test_other_products_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_parallel(valid(**given), FOUR, Ledger())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("local_size", "said"),
    [(None, "LOCAL_WORLD_SIZE"), (3, "3 of 4 processes are on this one")],
)
def test_a_copy_on_each_machine_needs_to_know_them(local_size: int | None, said: str) -> None:
    world = dataclasses.replace(FOUR, local_size=local_size)
    with pytest.raises(ConfigError) as caught:
        plan_parallel(valid(fsdp=["hybrid_shard"]), world, Ledger())
    assert said in str(caught.value)
    assert "Give `dp_replicate_size` (copies)" in str(caught.value)


def test_one_process_that_was_meant_to_be_several_does_not_train() -> None:
    config = valid(dp_shard_size=2)
    require_processes(config, dataclasses.replace(ONE, size=2))
    require_processes(valid(dp_shard_size=1), ONE)
    with pytest.raises(ConfigError, match="dp_shard_size 2, but 1 process was started"):
        require_processes(config, ONE)


@pytest.mark.parametrize("key", ["dp_shard_size", "dp_replicate_size"])
def test_a_command_of_one_process_says_that_sizes_do_nothing(key: str) -> None:
    ledger = Ledger()
    plan_parallel(valid(**{key: 2}), ONE, ledger)
    assert f"`{key}` has no effect in this run: it has one process." in ledger.notices
