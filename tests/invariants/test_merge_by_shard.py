"""Merged shard by shard = merged by PEFT over the whole model, bit for bit."""

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from newtune.model.load import load_base
from newtune.outputs.base_files import open_base
from newtune.outputs.merge import merge_adapter
from newtune.outputs.merge_shards import merge_shards
from newtune.outputs.shards import NeedsWholeModel, weight_files
from newtune.plan.parts import ModelPlan, PrecisionPlan, QuantizationPlan
from newtune.plan.quantization import PACKINGS
from newtune.run_dir import RunDir
from newtune.types import Example
from tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from tiny_quantized import WIDE, save_quantized_checkpoint, stood_for

ADAPTERS = {
    "lora": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["v_proj", "embed_tokens"]},
    "embedding and head": {"target_modules": ["v_proj", "embed_tokens", "lm_head"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 300, 383]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "dora head": {"target_modules": ["o_proj", "lm_head"], "use_dora": True},
}
SMALL = 40_000
"""Bytes of a shard, so that a tiny model has several."""


def plan(folder, **changes) -> ModelPlan:
    values = {
        "source": str(folder),
        "config_source": str(folder),
        "revision": None,
        "model_class": "AutoModelForCausalLM",
        "trust_remote_code": False,
        "ignore_patterns": (),
        "config_overrides": {},
        "load_kwargs": {},
        "attention": "sdpa",
        "precision": PrecisionPlan("float32", "float32", None, None),
        "device": "cpu",
        "gradient_checkpointing": False,
        "gradient_checkpointing_kwargs": {},
        "embedding_multiple": None,
    }
    return ModelPlan(**{**values, **changes})


def write_base(folder, family="llama", **config) -> Path:
    tiny_model(family, **config).save_pretrained(folder, max_shard_size="40KB")
    assert len(weight_files(folder)) > 1
    return folder


def train(base, folder, **options) -> None:
    """Write an adapter of PEFT's own, with every trained value drawn at random."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder, save_embedding_layers=False)


def reference(base, adapter, dtype) -> dict:
    """PEFT's merge over the whole model in float32, rounded once.

    A LoRA on one of two tied matrices corrects that one, so they are set apart before.
    """
    targets = set(LoraConfig.from_pretrained(str(adapter)).target_modules or ())
    if base.config.tie_word_embeddings and targets & {"lm_head", "embed_tokens", "wte"}:
        head = base.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
    return {name: value.to(dtype) for name, value in merged.state_dict().items()}


def by_shard(folder, adapter, target, dtype="float32", **changes) -> dict:
    target.mkdir()
    base = open_base(plan(folder, **changes), tiny_tokenizer())
    merge_shards(base, adapter, target, dtype=dtype, most_shard_bytes=SMALL)
    assert len(weight_files(target)) > 1
    loaded, report = AutoModelForCausalLM.from_pretrained(
        target, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(report.values())
    return loaded.state_dict()


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("family", ["llama", "qwen3"], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_it_is_pefts_merge_bit_for_bit_for_every_adapter(tmp_path, kind, family):
    base = write_base(tmp_path / "base", family)
    train(tiny_model(family), tmp_path / "adapter", **ADAPTERS[kind])
    expected = reference(tiny_model(family), tmp_path / "adapter", torch.bfloat16)
    assert_equal(by_shard(base, tmp_path / "adapter", tmp_path / "out", "bfloat16"), expected)


@pytest.mark.parametrize("family", ["gemma2", "phi3", "mixtral", "qwen3_moe", "stablelm", "gpt2"])
def test_it_is_pefts_merge_for_other_families(tmp_path, family):
    """Experts that loading fuses are passed on as they are stored; GPT-2's layers are Conv1D."""
    base = write_base(tmp_path / "base", family)
    targets = {"phi3": ["qkv_proj", "down_proj"], "gpt2": ["c_attn", "c_proj", "wte"]}
    chosen = targets.get(family, ["q_proj", "o_proj"])
    options = {"target_modules": chosen, "fan_in_fan_out": family == "gpt2"}
    train(tiny_model(family), tmp_path / "adapter", **options)
    expected = reference(tiny_model(family), tmp_path / "adapter", torch.float32)
    assert_equal(by_shard(base, tmp_path / "adapter", tmp_path / "out"), expected)


def test_files_of_the_bare_decoder_lack_the_prefix(tmp_path):
    tiny_model("qwen3").model.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    tiny_model("qwen3").config.save_pretrained(tmp_path / "base")
    train(tiny_model("qwen3"), tmp_path / "adapter", target_modules=["q_proj"])
    expected = reference(tiny_model("qwen3"), tmp_path / "adapter", torch.float32)
    assert_equal(by_shard(tmp_path / "base", tmp_path / "adapter", tmp_path / "out"), expected)


@pytest.mark.parametrize("family", ["llama", "qwen3"], ids=["untied", "tied"])
def test_grown_embeddings_are_filled_as_the_training_filled_them(tmp_path, family):
    base = write_base(tmp_path / "base", family, vocab_size=380)
    changes = {"embedding_multiple": 32}
    grown = open_base(plan(base, **changes), tiny_tokenizer())
    assert grown.model.get_input_embeddings().weight.shape == (384, 32)

    def load():
        from newtune.model.load import grow_embeddings

        model = load_base(plan(base))
        grow_embeddings(model, 384, multiple=32)
        return model

    train(load(), tmp_path / "adapter", target_modules=["q_proj"], trainable_token_indices=[381])
    expected = reference(load(), tmp_path / "adapter", torch.float32)
    assert_equal(by_shard(base, tmp_path / "adapter", tmp_path / "out", **changes), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stored", [False, True], ids=["quantised at loading", "stored so"])
def test_a_quantised_base_is_dequantised_layer_by_layer(tmp_path, bits, stored):
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    base = write_base(tmp_path / "base", **sizes)
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    kinds = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    if stored:
        config = BitsAndBytesConfig(**kinds, **options)
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=config, device_map={"": "cpu"}
        )
        base = tmp_path / "stored"
        model.save_pretrained(base, max_shard_size="40KB")
    changes = {"quantization": QuantizationPlan(bits, options, stored=stored)}
    train(tiny_model(**sizes), tmp_path / "adapter", target_modules="all-linear")
    whole = load_base(plan(base, **changes), dequantized=True)
    assert not torch.equal(
        whole.model.layers[0].mlp.up_proj.weight,
        tiny_model(**sizes).model.layers[0].mlp.up_proj.weight,
    )
    expected = reference(whole, tmp_path / "adapter", torch.bfloat16)
    found = by_shard(base, tmp_path / "adapter", tmp_path / "out", "bfloat16", **changes)
    assert_equal(found, expected)


def test_a_base_rounded_for_the_training_is_merged_as_rounded(tmp_path):
    base = write_base(tmp_path / "base")
    train(tiny_model(), tmp_path / "adapter", target_modules="all-linear")
    rounded = tiny_model().bfloat16().float()
    expected = reference(rounded, tmp_path / "adapter", torch.float32)
    precision = PrecisionPlan("bfloat16", "float32", None, None)
    found = by_shard(base, tmp_path / "adapter", tmp_path / "out", precision=precision)
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "changed the base"),
        (
            "mixtral",
            {"target_parameters": ["mlp.experts.down_proj"], "target_modules": []},
            "put together",
        ),
    ],
)
def test_what_cannot_be_taken_layer_by_layer_is_said(tmp_path, family, options, reason):
    base = write_base(tmp_path / "base", family)
    train(tiny_model(family), tmp_path / "adapter", **options)
    with pytest.raises(NeedsWholeModel, match=reason):
        by_shard(base, tmp_path / "adapter", tmp_path / "out")


def test_bin_gguf_and_remote_code_are_not_taken_by_shard(tmp_path):
    base = save_tiny_checkpoint(tmp_path / "base")
    with pytest.raises(NeedsWholeModel, match="code comes with"):
        open_base(plan(base, trust_remote_code=True), tiny_tokenizer())
    (base / "model.safetensors").rename(base / "other.safetensors")
    with pytest.raises(NeedsWholeModel, match=r"no model\*\.safetensors"):
        open_base(plan(base), tiny_tokenizer())


def test_a_base_on_a_hub_is_merged_from_its_cache(tmp_path, hub):
    hub.add("someone/tiny", write_base(tmp_path / "base"), tag="v1")
    hub.add("someone/tiny", {"model.safetensors.index.json": b"not what is asked for"})
    train(tiny_model(), tmp_path / "adapter", target_modules=["q_proj"])
    expected = reference(tiny_model(), tmp_path / "adapter", torch.float32)
    found = by_shard("someone/tiny", tmp_path / "adapter", tmp_path / "out", revision="v1")
    assert_equal(found, expected)


def test_files_quantised_otherwise_are_not_taken_by_shard(tmp_path):
    base = save_tiny_checkpoint(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(NeedsWholeModel, match="quantised by hqq"):
        open_base(plan(base), tiny_tokenizer())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", ["gptq", "gptq-8", "gptq-v2"])
def test_a_packed_base_is_unpacked_layer_by_layer(tmp_path, packed, dtype):
    """No quantising library has a part in it; the run's bfloat16 does not round what is packed."""
    base = save_quantized_checkpoint(tmp_path / "base", packed)
    whole = tiny_model(**WIDE).to(getattr(torch, dtype)).float()
    for name, weight in stood_for(base).items():
        whole.get_submodule(name).weight.data = weight
    train(whole, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    whole = whole.base_model.unload() if isinstance(whole, PeftModel) else whole
    expected = reference(whole, tmp_path / "adapter", torch.float16)
    changes = {
        "quantization": stored_plan(base),
        "precision": PrecisionPlan(dtype, "float32", None, None),
    }
    found = by_shard(base, tmp_path / "adapter", tmp_path / "out", "float16", **changes)
    assert_equal(found, expected)


def stored_plan(base: Path) -> QuantizationPlan:
    stored = json.loads((base / "config.json").read_text())["quantization_config"]
    packing = PACKINGS[stored["quant_method"]]
    options = packing.options(stored)
    return QuantizationPlan(packing.bits(stored), options, stored=True, method=packing.method)


def test_transposed_layers_are_not_unpacked_by_shard(tmp_path):
    """Of a square one the files do not tell which way round it is."""
    base = save_quantized_checkpoint(tmp_path / "base", "gptq")
    config = tiny_model("gpt2").config
    config.quantization_config = json.loads((base / "config.json").read_text())[
        "quantization_config"
    ]
    config.save_pretrained(base)
    with pytest.raises(NeedsWholeModel, match="stored transposed"):
        open_base(plan(base, quantization=stored_plan(base)), tiny_tokenizer())


@pytest.mark.parametrize(
    ("family", "options", "whole"),
    [
        ("llama", {"target_modules": ["q_proj", "v_proj"]}, False),
        ("mixtral", {"target_parameters": ["mlp.experts.down_proj"], "target_modules": []}, True),
    ],
    ids=["by shard", "adapted experts: whole"],
)
def test_both_ways_end_in_the_same_proof(tmp_path, caplog, family, options, whole):
    """The whole base is loaded, with a notice, where it cannot be taken layer by layer."""
    base = write_base(tmp_path / "base", family)
    train(tiny_model(family), tmp_path / "run", **options)
    loads = []

    def load():
        loads.append(family)
        return PeftModel.from_pretrained(tiny_model(family), tmp_path / "run")

    ids = np.random.default_rng(0).integers(6, 384, (4, 24), dtype=np.int32)
    caplog.set_level("INFO")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = merge_adapter(
            load,
            tiny_tokenizer(),
            RunDir(tmp_path / "run"),
            [Example(row, row) for row in ids],
            base_source="",
            dtype="float32",
            open_base=partial(open_base, plan(base), tiny_tokenizer()),
        )
    assert merged.report.passed
    assert len(loads) == (2 if whole else 1)
    assert ("the whole base is loaded to merge" in caplog.text) is whole
    loaded = AutoModelForCausalLM.from_pretrained(merged.folder).state_dict()
    assert_equal(loaded, reference(tiny_model(family), tmp_path / "run", torch.float32))
    assert not list((tmp_path / "run").glob(".*"))
