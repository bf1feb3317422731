"""Which layers are split over processes, and what is refused with the reason."""

import dataclasses
from typing import Any

import pytest

from configs import valid
from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.plan.facts import ModelFacts
from newtune.plan.ledger import Ledger
from newtune.plan.parallel import plan_parallel
from newtune.plan.parts import AdapterPlan, QuantizationPlan
from newtune.plan.sharing import MeshPlan, ParallelPlan

TWO = World(0, 2, "cpu", 0, bf16_is_fast=False)
FOUR = dataclasses.replace(TWO, size=4)
PLAN = {
    "lm_head": "colwise_gather_output",
    "model.embed_tokens": "embedding_rowwise",
    "model.layers.*.mlp.up_proj": "colwise",
    "model.layers.*.mlp.down_proj": "rowwise",
}
FACTS = ModelFacts(
    "llama", "LlamaForCausalLM", 0, 2, 32, 384, 512, "float32", {}, "lm_head", {}, False,
    tensor_plan=PLAN, heads=4, key_heads=2,
)  # fmt: skip
LORA = AdapterPlan("lora", 4, 8, 0.0, "all-linear", None, (), False, False, False, True, None)


def planned(world: World = TWO, facts: ModelFacts = FACTS, **given: Any) -> ParallelPlan:
    options = {name: given.pop(name, None) for name in ("adapter_plan", "quantization")}
    return plan_parallel(
        valid(tensor_parallel_size=2, **given),
        world,
        Ledger(),
        facts=facts,
        adapter=options["adapter_plan"],
        quantization=options["quantization"],
    )


def test_layers_are_split_and_the_vocabulary_is_whole() -> None:
    plan = planned()
    assert (plan.engine, plan.mesh) == ("tensor", MeshPlan(tensor=2))
    assert set(plan.tensor_styles) == {"model.layers.*.mlp.up_proj", "model.layers.*.mlp.down_proj"}


def test_layers_are_split_and_parameters_sharded() -> None:
    plan = planned(FOUR, dp_shard_size=2)
    assert (plan.engine, plan.mesh) == ("fsdp2", MeshPlan(shards=2, tensor=2))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"tensor_plan": {}}, "no plan of how to split the layers of `llama`"),
        ({"tensor_plan": {"model.layers.*.mlp.experts": "moe_tp_experts"}}, "by moe_tp_experts"),
        ({"key_heads": 1}, "the model's 1 key heads cannot be dealt out evenly"),
    ],
)
def test_models_that_cannot_be_split(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(facts=dataclasses.replace(FACTS, **facts))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"adapter_plan": dataclasses.replace(LORA, use_dora=True)},
            "the rows whose norms DoRA needs whole",
        ),
        (
            {"adapter_plan": dataclasses.replace(LORA, target_parameters=("x",))},
            "splits layers, not single parameters",
        ),
        (
            {"adapter_plan": dataclasses.replace(LORA, modules_to_save=("up_proj",))},
            "PEFT would train a whole copy",
        ),
        ({"quantization": QuantizationPlan(4, {})}, "cannot split a quantised base"),
        ({"optimizer": "adamw_8bit"}, "not known to work on sharded"),
    ],
)
def test_runs_that_cannot_be_split(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**given)


def test_with_sharding_more_is_refused() -> None:
    with pytest.raises(ConfigError, match="splits are not offloaded"):
        planned(FOUR, fsdp_config={"offload_params": True})
    norms = {**PLAN, "model.layers.*.self_attn.q_norm": "replicated_with_grad_allreduce"}
    facts = dataclasses.replace(FACTS, tensor_plan=norms)
    planned(FOUR, facts, dp_shard_size=2, adapter_plan=LORA)
    with pytest.raises(ConfigError, match="a part of their gradient only"):
        planned(FOUR, facts, dp_shard_size=2)


def test_copies_need_sharding() -> None:
    with pytest.raises(ConfigError, match="2 copies of a model whose layers are split"):
        planned(FOUR, dp_replicate_size=2)
