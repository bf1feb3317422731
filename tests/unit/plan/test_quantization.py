"""A checkpoint that is quantised already is taken up as it is, or refused with the reason."""

from dataclasses import replace

import pytest

from newtune.errors import ConfigError, SetupError
from newtune.model.facts import read_model_facts
from newtune.model.quantization import require_library
from newtune.plan.parts import AdapterPlan, PrecisionPlan, QuantizationPlan
from newtune.plan.quantization import (
    plan_quantization,
    require_trainable,
    unpacked_at_loading,
)
from tiny_quantized import CONFIGS, save_quantized_checkpoint

FLOAT32 = PrecisionPlan("float32", "float32", None, None)
LORA = AdapterPlan("lora", 4, 8, 0.0, ("q_proj",), None, (), False, False, False, True, None)
NONE = {"adapter": "lora", "four_bit": False, "eight_bit": False, "options": {}}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return read_model_facts(str(save_quantized_checkpoint(tmp_path_factory.mktemp("b"), "gptq")))


def plan(facts, stored, **keys):
    return plan_quantization(replace(facts, stored_quantized=stored), FLOAT32, **{**NONE, **keys})[
        0
    ]


def test_the_facts_are_those_of_the_model_that_is_packed(facts):
    assert facts.parameters == 2 * 36_992 + 2 * 384 * 64 + 64
    assert facts.linear_modules["model.layers.0.mlp.down_proj"] == (128, 64)
    assert facts.stored_quantized == CONFIGS["gptq"]


@pytest.mark.parametrize(
    ("family", "layers", "says"),
    [
        ("gpt2", "transformer.h.0", r"transformers cannot read such files into \(gpt2\)"),
        ("mamba", "backbone.layers.0", "for `mamba`, whose layers optimum does not find"),
    ],
)
def test_gptq_is_refused_where_the_libraries_cannot_load_it(facts, family, layers, says):
    other = replace(facts, model_type=family, linear_modules={f"{layers}.x": (64, 64)})
    with pytest.raises(ConfigError, match=says):
        plan(other, CONFIGS["gptq"])


@pytest.mark.parametrize("gptq", [False, True])
@pytest.mark.parametrize(("name", "bits"), [("gptq", 4), ("gptq-8", 8), ("gptq-v2", 4)])
def test_gptq_is_seen_with_and_without_its_key(facts, name, bits, gptq):
    found = plan(facts, CONFIGS[name], gptq=gptq)
    form = CONFIGS[name]["checkpoint_format"]
    options = {"group_size": 32, "format": form}
    assert found == QuantizationPlan(bits, options, stored=True, method="gptq")
    assert not found.rounds_inputs


@pytest.mark.parametrize(
    "stored",
    [CONFIGS["awq"], {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"}],
)
def test_awq_is_seen(facts, stored):
    found = plan(facts, stored)
    options = {"group_size": 32, "left_out": None}
    assert found == QuantizationPlan(4, options, stored=True, method="awq")


TORCHAO = CONFIGS["torchao"]


def changed(stored, change):
    """Return torchao's configuration with a part of what it says of its kind changed."""
    kind = stored["quant_type"]["default"]
    return {**stored, "quant_type": {"default": {**kind, **change}}}


@pytest.mark.parametrize(
    ("name", "kind", "bits", "group_size"),
    [
        ("torchao", "Int8WeightOnlyConfig", 8, None),
        ("torchao-4", "IntxWeightOnlyConfig", 4, 32),
        ("torchao-float8", "Float8WeightOnlyConfig", 8, None),
    ],
)
def test_torchao_is_seen_with_its_kind(facts, name, kind, bits, group_size):
    options = {"kind": kind, "group_size": group_size, "left_out": None}
    found, why = plan_quantization(replace(facts, stored_quantized=CONFIGS[name]), FLOAT32, **NONE)
    assert found == QuantizationPlan(bits, options, stored=True, method="torchao")
    assert why == f"the checkpoint is stored so by torchao ({kind})"
    assert not found.rounds_inputs
    require_trainable(found, replace(LORA, use_dora=True))


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (changed(TORCHAO, {"_type": "Int4WeightOnlyConfig"}), "packs for one kernel on a GPU"),
        *(
            (changed(TORCHAO, {"_type": f"{name}Config"}), "rounds what goes into its layers")
            for name in (
                "Int8DynamicActivationInt8Weight",
                "Int8DynamicActivationIntxWeight",
                "Int8StaticActivationInt8Weight",
                "Float8DynamicActivationFloat8Weight",
            )
        ),
        (changed(TORCHAO, {"_type": "FqnToConfig"}), "stores layers in several kinds"),
        (changed(TORCHAO, {"_type": "New"}), "as `New`; newtune reads Int8WeightOnlyConfig, "),
        (changed(TORCHAO, {"_version": 1}), "of version 1; newtune reads version 2"),
        (
            changed(
                CONFIGS["torchao-4"],
                {"_data": {"intx_packing_format": {"_data": "OPAQUE_ATEN_KLEIDIAI"}}},
            ),
            "in the form `OPAQUE_ATEN_KLEIDIAI`",
        ),
        ({**TORCHAO, "include_input_output_embeddings": True}, "with its embeddings"),
        ({**TORCHAO, "quant_type": "int4_weight_only"}, "as `int4_weight_only`; newtune reads"),
    ],
)
def test_torchao_of_other_kinds_is_refused(facts, stored, says):
    with pytest.raises(ConfigError, match="is packed by torchao") as error:
        plan(facts, stored)
    assert says in str(error.value)


def test_a_layer_that_fills_no_word_is_refused_unless_gptq_left_it_out(facts):
    """Qwen's gate of a shared expert has one output; zeros of 4 bit are packed by eights."""
    gate = {"model.layers.0.mlp.shared_expert_gate": (64, 1)}
    other = replace(facts, linear_modules={**facts.linear_modules, **gate})
    with pytest.raises(ConfigError, match="`shared_expert_gate` is 1 wide, not a multiple of 8"):
        plan(other, CONFIGS["gptq"])
    listed = {
        **CONFIGS["gptq"],
        "modules_in_block_to_quantize": [["mlp.up_proj"], ["mlp.down_proj"]],
    }
    assert plan(other, listed).bits == 4


@pytest.mark.parametrize(("method", "name"), [("fp8", "FP8"), ("mxfp4", "MXFP4")])
def test_what_loading_dequantises_is_a_plain_base_with_its_size_told(facts, method, name):
    facts = replace(facts, parameters=3 << 30, stored_quantized={"quant_method": method})
    assert plan(facts, facts.stored_quantized) is None
    assert plan(facts, facts.stored_quantized, adapter=None) is None
    assert plan(facts, facts.stored_quantized, four_bit=True).bits == 4
    mixed = PrecisionPlan("bfloat16", "float32", "bfloat16", None)
    said = unpacked_at_loading(facts, mixed, adapter="lora")
    assert f"stored in {name} and dequantised" in said
    assert "take 6 GiB in bfloat16" in said
    assert "take 12 GiB in float32" in unpacked_at_loading(facts, mixed, adapter=None)
    assert unpacked_at_loading(replace(facts, stored_quantized=None), mixed, adapter=None) is None


@pytest.mark.parametrize(
    ("change", "family", "says"),
    [
        ({"version": "gemv"}, "llama", "`gemv` format; newtune reads `gemm`"),
        ({"version": "exllama"}, "llama", "`exllama` format"),
        ({"bits": 8}, "llama", "not in 4 bit with zero points"),
        ({"zero_point": False}, "llama", "not in 4 bit with zero points"),
        ({}, "starcoder2", "with factors of activations"),
    ],
)
def test_awq_of_other_kinds_is_refused(facts, change, family, says):
    stored = {**CONFIGS["awq"], **change}
    with pytest.raises(ConfigError, match=f"is packed by AWQ .*{says}"):
        plan(replace(facts, model_type=family), stored)


@pytest.mark.parametrize(
    ("stored", "keys", "path", "says"),
    [
        (None, {"gptq": True}, "gptq", "is not quantised"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"gptq": True},
            "gptq",
            "quantised by `bitsandbytes`",
        ),
        (CONFIGS["gptq"], {"adapter": None}, "base_model", "trained without an adapter"),
        (
            CONFIGS["gptq"],
            {"adapter": "qlora"},
            "base_model",
            "4 bit are asked for of bitsandbytes",
        ),
        (CONFIGS["gptq"], {"eight_bit": True}, "base_model", "8 bit are asked for"),
        *(
            ({"quant_method": method}, {}, "base_model", f"quantised by `{method}`")
            for method in (
                *("hqq", "eetq"),
                *("aqlm", "vptq", "quanto", "spqr", "compressed-tensors"),
            )
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(facts, stored, keys, path, says):
    with pytest.raises(ConfigError, match=says) as error:
        plan(facts, stored, **keys)
    assert [problem.path for problem in error.value.problems] == [path]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"use_dora": True}, "peft_use_dora"),
        ({"init": "pissa_niter_4"}, "peft_init_lora_weights"),
        ({"init": "olora"}, "peft_init_lora_weights"),
        ({"repairs_quantization": True}, "peft.loftq_config"),
    ],
)
def test_adapters_that_packed_layers_cannot_carry_are_refused(facts, change, path):
    base = plan(facts, CONFIGS["gptq"])
    require_trainable(base, LORA)
    require_trainable(base, replace(LORA, init="gaussian"))
    with pytest.raises(ConfigError) as error:
        require_trainable(base, replace(LORA, **change))
    assert [problem.path for problem in error.value.problems] == [path]


def test_dora_goes_on_bitsandbytes():
    require_trainable(QuantizationPlan(4, {}), replace(LORA, use_dora=True))
    require_trainable(None, replace(LORA, use_dora=True, init="pissa"))


def test_a_missing_package_is_answered_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"`gptqmodel` and `optimum`\. Install: make install-gptq"):
        require_library("gptq")
    with pytest.raises(SetupError, match="Install: pip install"):
        require_library("bitsandbytes")
    require_library("awq")  # newtune's own layers
    require_library("torchao")
