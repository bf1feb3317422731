"""Who shares sequences, and what is refused with the reason."""

import dataclasses
from typing import Any

import pytest

from configs import problems, valid
from newtune.config.idle import idle_keys
from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.plan.facts import ModelFacts
from newtune.plan.ledger import Ledger
from newtune.plan.parallel import plan_parallel
from newtune.plan.sharing import MeshPlan, ParallelPlan

TWO = World(0, 2, "cpu", 0, bf16_is_fast=False)
FOUR = dataclasses.replace(TWO, size=4)
FACTS = ModelFacts(
    "llama", "LlamaForCausalLM", 0, 2, 32, 384, 512, "float32", {}, "lm_head", {}, False,
    heads=4, key_heads=2,
)  # fmt: skip

OLD = {"context_parallel_size": None, "sequence_parallel_degree": 2}


def planned(
    world: World = TWO, facts: ModelFacts = FACTS, attention: str = "newtune_packed", **given: Any
) -> ParallelPlan:
    config = valid(**{"context_parallel_size": 2, **given})
    return plan_parallel(config, world, Ledger(), facts=facts, attention=attention)


@pytest.mark.parametrize(
    ("world", "given", "engine", "mesh"),
    [
        (TWO, {}, "ddp", MeshPlan(1, 1, 2)),
        (TWO, OLD, "ddp", MeshPlan(1, 1, 2)),
        (FOUR, {}, "ddp", MeshPlan(2, 1, 2)),
        (FOUR, {"dp_replicate_size": 2}, "ddp", MeshPlan(2, 1, 2)),
        (FOUR, {"dp_shard_size": 2}, "fsdp2", MeshPlan(1, 2, 2)),
        (FOUR, {"fsdp_config": {"offload_params": True}}, "fsdp2", MeshPlan(1, 2, 2)),
        (TWO, {"fsdp_config": {"reshard_after_forward": True}}, "fsdp2", MeshPlan(1, 1, 2)),
        (FOUR, {"context_parallel_size": 4}, "ddp", MeshPlan(1, 1, 4)),
        (FOUR, {"context_parallel_size": 1}, "ddp", MeshPlan(4)),
    ],
)  # fmt: skip
def test_neighbours_share_sequences(
    world: World, given: dict[str, Any], engine: str, mesh: MeshPlan
) -> None:
    plan = planned(world, **given)
    assert (plan.engine, plan.mesh) == (engine, mesh)


def test_rows_are_dealt_out_to_those_that_share_one() -> None:
    assert (MeshPlan(2, 1, 2).sharers, MeshPlan(2, 1, 1, 2).sharers, MeshPlan(4).sharers) == (
        2,
        2,
        1,
    )


@pytest.mark.parametrize(
    ("facts", "attention", "message"),
    [
        ({"model_type": "falcon"}, "sdpa", "was not shown to be right for `falcon`"),
        ({"layer_kinds": frozenset({"conv"})}, "sdpa", "in layers of kind `conv`"),
        ({"rotary_kinds": frozenset({"longrope"})}, "sdpa", "the length of the sequence"),
        ({"heads": 9, "key_heads": 3}, "sdpa", "the model's 9 attention heads cannot be dealt"),
        ({"heads": 6, "key_heads": 3}, "sdpa", "the model's 3 key heads cannot be dealt out"),
        ({"key_heads": 1}, "sdpa", "1 key heads, which `sdpa` cannot copy"),
        ({}, "eager", "`eager` cannot attend to a sequence that processes share"),
    ],
)
def test_what_cannot_be_is_refused(facts: dict[str, Any], attention: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(facts=dataclasses.replace(FACTS, **facts), attention=attention)
    assert message in str(caught.value)


def test_few_key_heads_are_copied_where_the_attention_can() -> None:
    assert planned(facts=dataclasses.replace(FACTS, key_heads=1)).mesh.context == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neftune_noise_alpha": 5}, "its noise depends on the length of the sequence"),
        ({"tensor_parallel_size": 2}, "both deal out the heads of attention"),
        ({"ddp": False}, "is false, but 4 processes were started"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(FOUR, **given)
    assert message in str(caught.value)


def test_a_ring_is_refused_and_its_stride_answered() -> None:
    (said,) = problems(context_parallel_size=2, ring_attn_func="varlen_llama3")
    assert "ring_attn_func: ring attention runs on GPUs only" in said
    idle = idle_keys(valid(context_parallel_size=2, heads_k_stride=1))
    assert "parts of a sequence are exchanged for heads" in idle["heads_k_stride"]
    assert set(idle_keys(valid(ring_attn_func="batch_ring"))) == {"ring_attn_func"}


def test_deepspeed_shares_over_all_processes() -> None:
    said = problems(context_parallel_size=2, deepspeed="deepspeed_configs/zero1.json")
    assert any("context_parallel_size: excludes `deepspeed`" in one for one in said)
