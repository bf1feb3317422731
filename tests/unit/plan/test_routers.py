"""What chooses the experts of a mixture gets no LoRA and keeps its bits, and that is told."""

import pytest
import torch

from configs import valid
from newtune.errors import ModelError
from newtune.model.adapters import attach_adapter
from newtune.model.facts import read_model_facts
from newtune.plan.adapter import plan_adapter
from newtune.plan.ledger import Ledger
from newtune.plan.parts import PrecisionPlan
from newtune.plan.quantization import plan_quantization
from newtune.plan.targets import adapter_targets, count_trainable, resolve_targets
from tiny import FAMILIES, tiny_config, tiny_model

MIXTURES = [name for name, config in FAMILIES.items() if any("expert" in key for key in config)]
LORA = {"adapter": "lora", "lora_target_linear": True}


@pytest.fixture
def facts(tmp_path):
    def read(family, **config):
        tiny_config(family, **config).save_pretrained(tmp_path)
        return read_model_facts(str(tmp_path))

    return read


@pytest.mark.parametrize("family", MIXTURES)
def test_every_mixture_has_routers_and_none_of_them_is_adapted(facts, family):
    found, ledger = facts(family), Ledger()
    assert found.routers
    plan = plan_adapter(valid(**LORA), found, ledger, None)
    targets = adapter_targets(found, plan)
    assert targets
    assert not found.routers.keys() & set(targets)
    model = attach_adapter(tiny_model(family).requires_grad_(requires_grad=False), plan)
    assert model.get_nb_trainable_parameters()[0] == count_trainable(found, plan)
    model(torch.arange(9)[None]).logits.sum().backward()
    said = [text for text in ledger.notices if "what chooses the experts" in text]
    assert len(said) == 1
    assert all(name.rpartition(".")[2] in said[0] for name in found.routers)
    assert "and the routers of experts" in ledger.reasons["adapter.target_modules"]


def test_layers_that_peft_takes_for_experts_are_left_out_and_refused(facts):
    found, ledger = facts("deepseek_v3"), Ledger()
    plan_adapter(valid(**LORA), found, ledger, None)
    assert any(
        "leaves out down_proj, gate_proj, up_proj of dense layers and shared experts" in text
        for text in ledger.notices
    )
    with pytest.raises(
        ModelError, match=r"PEFT takes `down_proj`.*\[mlp.experts.down_proj, mlp.ex"
    ):
        resolve_targets(found, modules=["q_a_proj", "down_proj"], all_linear=False)
    assert not facts("qwen2_moe").taken_for_experts


@pytest.mark.parametrize("family", ["llama", "gemma3n_text", "falcon"])
def test_other_models_have_none(facts, family):
    assert not facts(family).routers


@pytest.mark.parametrize(("family", "named", "weight"), [
    ("llama4_text", "router", "feed_forward.router.weight"),
    ("phimoe", "router", "mlp.router.weight"),
])  # fmt: skip
def test_naming_one_that_is_no_ordinary_layer_is_refused(facts, family, named, weight):
    with pytest.raises(ModelError, match=rf"`{named}` chooses the experts.*\[{weight}\]"):
        resolve_targets(facts(family), modules=["q_proj", named], all_linear=False)


@pytest.mark.parametrize("family", ["llama4_text", "phimoe"])
def test_a_router_that_is_a_linear_layer_to_python_stays_unquantised(facts, family):
    found = facts(family)
    precision = PrecisionPlan("float32", "float32", None, None)
    plan, _ = plan_quantization(
        found, precision, adapter="qlora", four_bit=True, eight_bit=None, options={}
    )
    assert set(plan.options["llm_int8_skip_modules"]) == {*found.routers, found.head_name}
