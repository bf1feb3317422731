"""Layers whose weights a state-space kernel reads get no LoRA, and are said to get none."""

import pytest

from newtune.errors import ModelError
from newtune.model.facts import read_model_facts
from newtune.plan.parts import AdapterPlan
from newtune.plan.targets import adapter_targets, expert_parameters, read_directly, resolve_targets
from tiny import tiny_config


@pytest.fixture
def facts(tmp_path):
    def read(family):
        tiny_config(family).save_pretrained(tmp_path)
        return read_model_facts(str(tmp_path))

    return read


def targeted(facts, targets):
    plan = AdapterPlan(
        "lora", 4, 8, 0.0, targets, None, (), False, False, False, init=True, continue_from=None
    )
    return {name.rpartition(".")[2] for name in adapter_targets(facts, plan)}


@pytest.mark.parametrize(("family", "left"), [
    ("mamba", {"in_proj"}),
    ("mamba2", {"in_proj"}),
    ("jamba", {"in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
               "down_proj"}),
])  # fmt: skip
def test_all_linear_layers_are_those_that_are_called(facts, family, left):
    found = facts(family)
    targets = resolve_targets(found, modules=None, all_linear=True)
    assert targeted(found, targets) >= left
    assert not targeted(found, targets) & {"out_proj", "dt_proj", "x_proj"}


@pytest.mark.parametrize("modules", [["in_proj", "out_proj"], r".*_proj"])
def test_naming_one_is_refused(facts, modules):
    with pytest.raises(ModelError, match=r"cannot be adapted: a state-space kernel of this mamba"):
        resolve_targets(facts("mamba"), modules=modules, all_linear=False)


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "opt"])
def test_an_out_proj_elsewhere_is_a_layer_like_others(facts, family):
    assert not read_directly(facts(family))


@pytest.mark.parametrize(("family", "named"), [
    ("mixtral", ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]),
    ("gpt_oss", ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]),
    ("jamba", ["feed_forward.experts.down_proj", "feed_forward.experts.gate_up_proj"]),
    ("mamba", []),
    ("llama", []),
])  # fmt: skip
def test_experts_that_no_linear_layer_holds_are_named(facts, family, named):
    assert expert_parameters(facts(family)) == named
