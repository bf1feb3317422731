"""How adapters start: each way leaves the model as it was, or better, and tells the same again."""

import copy
import dataclasses

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight

from newtune.errors import ModelError
from newtune.model.adapters import attach_adapter
from newtune.model.eva import start_from_data
from newtune.model.head import compute_loss_sum, install_head
from newtune.model.load import load_model
from newtune.plan.parts import AdapterPlan, ModelPlan, PrecisionPlan, QuantizationPlan
from newtune.types import IGNORE_INDEX
from runs import ListedBatches, packed
from tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLAN = AdapterPlan(
    kind="lora", rank=4, alpha=8.0, dropout=0.0, target_modules=LINEAR, layers=None,
    modules_to_save=(), fan_in_fan_out=False, use_rslora=False, use_dora=False, init=True,
    continue_from=None,
)  # fmt: skip
TOKENS = torch.tensor([[7, 8, 9, 10]])


def attached(family="llama", *, model=None, **changes):
    model = model or tiny_model(family)
    install_head(model)
    plan = dataclasses.replace(PLAN, **changes)
    return attach_adapter(model.requires_grad_(requires_grad=False), plan)


def plan_of(folder, **changes) -> ModelPlan:
    values = {
        "source": str(folder), "config_source": str(folder), "revision": None,
        "model_class": "AutoModelForCausalLM", "trust_remote_code": False, "ignore_patterns": (),
        "config_overrides": {}, "load_kwargs": {}, "attention": "sdpa",
        "precision": PrecisionPlan("float32", "float32", None, None), "device": "cpu",
        "gradient_checkpointing": False, "gradient_checkpointing_kwargs": {},
        "embedding_multiple": None,
    }  # fmt: skip
    return ModelPlan(**{**values, **changes})


@pytest.mark.parametrize("init", ["orthogonal", "pissa_niter_3"])
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_at_step_zero_nothing_is_changed(init, use_dora):
    base = tiny_model()(TOKENS).logits
    logits = attached(init=init, use_dora=use_dora)(TOKENS).logits
    torch.testing.assert_close(logits, base, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_3", "olora"])
def test_what_is_taken_out_of_the_base_is_the_same_at_any_time(init):
    first = attached(init=init)
    torch.rand(17)  # a process that drew other numbers meanwhile
    again = attached(init=init)
    for (name, one), (_, other) in zip(
        first.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    layer = "model.layers.0.mlp.up_proj"
    plain = tiny_model().get_submodule(layer).weight
    assert not torch.equal(
        first.get_base_model().get_submodule(layer).get_base_layer().weight, plain
    )


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_tied_weight_is_not_taken_apart(init):
    with pytest.raises(ModelError, match=r"takes a part out of `lm_head`, whose weight is tied"):
        attached("qwen2", init=init, target_modules=("q_proj", "lm_head"))
    attached("llama", init=init, target_modules=("q_proj", "lm_head"))  # not tied


def test_olora_of_transposed_layers_is_refused():
    """PEFT would take the part the wrong way round, without an error where a layer is square."""
    with pytest.raises(ModelError, match="the wrong way round"):
        attached("gpt2", init="olora", target_modules=("c_proj",))


def test_fan_in_fan_out_where_nothing_is_transposed_is_answered(caplog):
    with caplog.at_level("INFO", logger="newtune"):
        attached("gpt2", target_modules=("c_attn",), fan_in_fan_out=True)
        assert not caplog.text
        attached(fan_in_fan_out=True)
    assert "`lora_fan_in_fan_out` has no effect" in caplog.text


# --- EVA


def inputs_of(model, name, batch):
    """What a layer sees at trained tokens, less the mean."""
    seen = []
    layer = model.get_base_model().get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        compute_loss_sum(model, batch)
    handle.remove()
    rows = seen[0].flatten(0, 1)[batch["labels"].flatten() != IGNORE_INDEX]
    return rows - rows.mean(0)


@pytest.mark.parametrize(
    "layer", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
)
def test_eva_starts_from_the_main_directions_of_the_inputs(layer):
    batches = ListedBatches([[[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]] * 4)
    model = attached(init="eva", rank=2)
    before = model(TOKENS).logits
    start_from_data(model, dataclasses.replace(PLAN, init="eva", rank=2), batches, autocast=None)
    torch.testing.assert_close(model(TOKENS).logits, before)
    found = model.get_base_model().get_submodule(layer).lora_A["default"].weight
    torch.testing.assert_close(found @ found.T, torch.eye(2), rtol=1e-4, atol=1e-4)
    rows = inputs_of(model, layer, batches[0])
    best = torch.linalg.svdvals(rows)[:2].square().sum()  # the second path: one analysis of all
    assert (rows @ found.T).square().sum() > 0.97 * best
    ranks = {m.r["default"] for m in model.modules() if isinstance(m, LoraLayer)}
    assert ranks == {2}


def test_eva_needs_as_many_trained_tokens_as_the_rank():
    plan = dataclasses.replace(PLAN, init="eva", rank=100)
    with pytest.raises(ModelError, match=r"at least lora_r \(100\) trained tokens"):
        start_from_data(attached(init="eva", rank=100), plan, packed(2), autocast=None)


# --- LoftQ

FOUR_BIT = QuantizationPlan(4, {"bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_type": "nf4"})


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    return save_tiny_checkpoint(folder, hidden_size=64, intermediate_size=128)


def loaded(folder, *, bits=4, **changes):
    quantization = FOUR_BIT if bits == 4 else QuantizationPlan(8, {})
    adapter = dataclasses.replace(PLAN, **changes)
    plan = plan_of(folder, quantization=quantization)
    torch.manual_seed(0)
    return load_model(plan, adapter, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_loftq_gives_back_the_most_that_its_rank_can(wide, bits, use_rslora):
    model = loaded(wide, bits=bits, repairs_quantization=True, use_rslora=use_rslora)
    plain = load_model(plan_of(wide), None, tokenizer=tiny_tokenizer())
    layers = [
        (name, m) for name, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)
    ]
    assert len(layers) == 14
    for name, layer in layers:
        lost = plain.get_submodule(name).weight - dequantize_module_weight(layer.get_base_layer())
        left = torch.linalg.norm(lost - layer.get_delta_weight("default"))
        # Eckart-Young: no matrix of rank 4 comes closer than by the other singular values
        best = torch.linalg.svdvals(lost)[4:].square().sum().sqrt()
        torch.testing.assert_close(left, best, rtol=1e-3, atol=1e-5)


def test_loftq_of_transposed_layers(tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "gpt2", "gpt2", n_embd=64)
    model = loaded(folder, repairs_quantization=True, target_modules=("attn.c_proj",))
    plain = load_model(plan_of(folder), None, tokenizer=tiny_tokenizer())
    name = "transformer.h.0.attn.c_proj"  # square: nothing but its values tells in from out
    layer = model.get_base_model().get_submodule(name)
    lost = plain.get_submodule(name).weight.T - dequantize_module_weight(layer.get_base_layer())
    assert (lost - layer.get_delta_weight("default")).norm() < 0.9 * lost.norm()


def test_loftq_brings_the_model_nearer_to_the_one_that_was_quantised(wide):
    plain = load_model(plan_of(wide), None, tokenizer=tiny_tokenizer()).eval()

    def distance(model):
        with torch.no_grad():
            return float((model.eval()(TOKENS).logits - plain(TOKENS).logits).norm())

    assert distance(loaded(wide, rank=16, repairs_quantization=True)) < 0.8 * distance(loaded(wide))


def test_loftq_leaves_the_base_as_it_is(wide):
    with_it = loaded(wide, repairs_quantization=True).get_base_model()
    without = loaded(wide).get_base_model()
    for name, layer in without.named_modules():
        if isinstance(layer, Linear4bit):
            assert torch.equal(layer.weight, with_it.get_submodule(name).weight)


def test_loftq_over_a_base_stored_in_4_bit_says_what_is_missing(wide, tmp_path):
    model = loaded(wide)
    stored = copy.deepcopy(FOUR_BIT)
    base = tmp_path / "stored"
    model.unload().save_pretrained(base)
    plan = plan_of(base, quantization=dataclasses.replace(stored, options={}, stored=True))
    adapter = dataclasses.replace(PLAN, repairs_quantization=True)
    with pytest.raises(ModelError, match="what that took away is not known"):
        load_model(plan, adapter, tokenizer=tiny_tokenizer())


# --- gradient checkpointing


def gradients(folder, adapter, **changes):
    torch.manual_seed(0)
    model = load_model(plan_of(folder, **changes), adapter, tokenizer=tiny_tokenizer())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if adapter is not None:
        for parameter in trained.values():
            torch.nn.init.normal_(parameter, std=0.1)
    loss, _ = compute_loss_sum(model, packed(1)[0])
    loss.backward()
    return {name: p.grad for name, p in trained.items()}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", LINEAR),
        ("qwen3", ("v_proj",)),
        ("gpt2", ("c_attn",)),
        ("llama", ("embed_tokens",)),
    ],
)
def test_gradient_checkpointing_trains_the_same(tmp_path, family, targets, reentrant):
    folder = save_tiny_checkpoint(tmp_path / "base", family)
    adapter = dataclasses.replace(PLAN, target_modules=targets)
    recomputed = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    expected, found = gradients(folder, adapter), gradients(folder, adapter, **recomputed)
    for name, gradient in expected.items():
        assert gradient.any(), name
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_below_frozen_layers(tmp_path, reentrant):
    folder = save_tiny_checkpoint(tmp_path / "base")
    chosen = {"unfrozen_parameters": ("model.layers.1.mlp", "lm_head")}
    recomputed = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    expected = gradients(folder, None, **chosen)
    found = gradients(folder, None, **chosen, **recomputed)
    assert len(expected) == 4
    for name, gradient in expected.items():
        assert gradient.any(), name
        torch.testing.assert_close(found[name], gradient)
