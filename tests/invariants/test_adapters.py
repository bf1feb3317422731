"""Adapters: the count made from facts is PEFT's own; at step 0 an adapter changes nothing."""

import pytest
import torch

from newtune.errors import ModelError
from newtune.model.adapters import attach_adapter
from newtune.model.facts import read_model_facts
from newtune.model.head import install_head
from newtune.plan.parts import AdapterPlan
from newtune.plan.targets import adapter_targets, count_trainable, resolve_targets
from tiny import save_tiny_checkpoint, tiny_model

PLAN = {
    "kind": "lora", "rank": 3, "alpha": 6.0, "dropout": 0.0, "target_modules": ("q_proj",),
    "layers": None, "modules_to_save": (), "fan_in_fan_out": False, "use_rslora": False,
    "use_dora": False, "init": True, "continue_from": None,
}  # fmt: skip
TOKENS = torch.tensor([[7, 8, 9, 10]])
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def facts_of(tmp_path, family):
    return read_model_facts(str(save_tiny_checkpoint(tmp_path / family, family)))


def attached(family, plan, **options):
    model = tiny_model(family)
    install_head(model)
    return attach_adapter(model.requires_grad_(False), plan, **options)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("family", "change"), [
    ("llama", {"target_modules": LINEAR}),
    ("llama", {"target_modules": r".*\.(q|v)_proj"}),
    ("llama", {"target_modules": LINEAR, "layers": (1,)}),
    ("llama", {"target_modules": ("model.layers.0.mlp.up_proj",)}),
    ("llama", {"target_modules": LINEAR, "use_dora": True}),
    ("llama", {"target_modules": (*LINEAR, "lm_head")}),
    ("llama", {"target_modules": ("q_proj", "embed_tokens")}),
    ("llama", {"modules_to_save": ("lm_head", "embed_tokens")}),
    ("llama", {"target_modules": LINEAR, "use_rslora": True, "init": "gaussian"}),
    ("qwen2", {"target_modules": LINEAR, "modules_to_save": ("embed_tokens", "lm_head")}),
    ("qwen2", {"modules_to_save": ("lm_head",)}),
    ("qwen2", {"modules_to_save": ("embed_tokens",)}),
    ("qwen2", {"target_modules": (*LINEAR, "lm_head")}),
    ("qwen2", {"target_modules": LINEAR, "init": "pissa"}),
    ("phi3", {"target_modules": ("qkv_proj", "gate_up_proj"), "init": "olora"}),
    ("gpt2", {"target_modules": ("c_attn",), "fan_in_fan_out": True}),
    ("gemma3_text", {"target_modules": LINEAR}),
    ("llama", {"modules_to_save": ("norm",)}),
    ("llama", {"modules_to_save": ("model.layers.0.input_layernorm", "lm_head")}),
    ("mixtral", {"target_parameters": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")}),
    ("phimoe", {"target_modules": LINEAR[:4], "target_parameters": ("mlp.router.weight",)}),
    ("mixtral", {"target_modules": ("q_proj", "gate")}),
])  # fmt: skip
def test_the_count_equals_pefts_own(tmp_path, family, change):
    plan = AdapterPlan(**{**PLAN, **change})
    model = attached(family, plan)
    assert count_trainable(facts_of(tmp_path, family), plan) == trainable(model)
    assert model.get_nb_trainable_parameters()[0] == trainable(model)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_new_tokens_count_once_or_twice(tmp_path, family):
    plan = AdapterPlan(**PLAN)
    model = attached(family, plan, new_token_ids=[4, 9])
    counted = count_trainable(facts_of(tmp_path, family), plan, new_tokens=2)
    assert counted == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2", "mixtral"])
def test_all_linear_takes_every_linear_layer_but_the_head(tmp_path, family):
    facts = facts_of(tmp_path, family)
    targets = resolve_targets(facts, modules=None, all_linear=True)
    plan = AdapterPlan(**{**PLAN, "target_modules": targets})
    assert set(adapter_targets(facts, plan)) == set(facts.linear_modules) - {facts.head_name}
    assert count_trainable(facts, plan) == trainable(attached(family, plan))


@pytest.mark.parametrize("change", [
    {}, {"use_dora": True}, {"use_rslora": True}, {"init": "pissa"}, {"init": "olora"},
    {"init": "gaussian"},
])  # fmt: skip
def test_at_step_zero_the_adapter_changes_nothing(change):
    base = tiny_model("llama")(TOKENS).logits
    model = attached("llama", AdapterPlan(**{**PLAN, "target_modules": LINEAR, **change}))
    torch.testing.assert_close(model(TOKENS).logits, base, rtol=1e-4, atol=1e-5)


def test_a_target_that_matches_nothing_lists_the_modules(tmp_path):
    facts = facts_of(tmp_path, "llama")
    with pytest.raises(ModelError, match=r"`query` matches no module.*`q_proj`"):
        resolve_targets(facts, modules=["query"], all_linear=False)
    with pytest.raises(ModelError, match="lora_target_linear"):
        resolve_targets(facts, modules=None, all_linear=False)


def test_an_adapter_that_matches_nothing_in_the_model_says_so():
    plan = AdapterPlan(**{**PLAN, "layers": (7,)})
    with pytest.raises(ModelError, match=r"matches no module: `q_proj` in layers 7.*v_proj"):
        attached("llama", plan)


def test_an_adapter_goes_on_from_where_it_was(tmp_path):
    plan = AdapterPlan(**{**PLAN, "target_modules": ("q_proj", "lm_head")})
    first = attached("llama", plan)
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    first.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    again = attached("llama", AdapterPlan(**{**PLAN, "continue_from": str(tmp_path / "adapter")}))
    assert trainable(again) == trainable(first)
    torch.testing.assert_close(again(TOKENS).logits, first(TOKENS).logits)


def test_an_adapter_whose_file_was_cut_off_is_named(tmp_path):
    attached("llama", AdapterPlan(**PLAN)).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot read its adapter"):
        attached("llama", AdapterPlan(**{**PLAN, "continue_from": str(tmp_path)}))


def test_an_adapter_folder_that_is_missing_is_named():
    plan = AdapterPlan(**{**PLAN, "continue_from": "./no-such-adapter"})
    with pytest.raises(ModelError, match="no-such-adapter"):
        attached("llama", plan)
