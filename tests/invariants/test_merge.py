"""merged = base + adapter, whatever the adapter is, and nothing else ever becomes merged/."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from newtune.errors import ExportError
from newtune.outputs.merge import merge_adapter
from newtune.outputs.save import read_manifest, save_weights
from newtune.outputs.verify import VERIFICATION
from newtune.run_dir import RunDir
from newtune.types import Example
from tiny import tiny_model, tiny_tokenizer

FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "cohere", "granite"]
ADAPTERS = {
    "all linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "one layer": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["v_proj", "embed_tokens"]},
    "modules to save": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
    "token rows": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 300, 383]},
}
EXAMPLES = [
    Example(ids, ids) for ids in np.random.default_rng(0).integers(6, 384, (6, 24), dtype=np.int32)
]
IDS = torch.from_numpy(np.stack([example.input_ids for example in EXAMPLES]).astype(np.int64))


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "run")


def train(run_dir: RunDir, family="llama", *, strength=0.2, dtype=torch.float32, **lora):
    """Write an adapter as a training would leave it, trained weights drawn at random."""
    model = tiny_model(family).to(dtype)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    with pytest.warns() if "embed_tokens" in options["target_modules"] else nothing():
        model = get_peft_model(model, LoraConfig(**options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() + strength * torch.randn(parameter.shape)
    save_weights(model, tiny_tokenizer(), run_dir.root, base_source="tiny")


def nothing():
    from contextlib import nullcontext

    return nullcontext()


def loader(run_dir: RunDir, family="llama", *, seed=0, dtype=torch.float32):
    def load():
        return PeftModel.from_pretrained(tiny_model(family, seed=seed).to(dtype), run_dir.root)

    return load


def merge(run_dir, load=None, *, dtype="float32", examples=EXAMPLES, **options):
    return merge_adapter(
        load or loader(run_dir),
        tiny_tokenizer(),
        run_dir,
        examples,
        base_source="tiny",
        dtype=dtype,
        **options,
    )


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_base_plus_adapter_for_every_family(run_dir, family):
    train(run_dir, family)
    merged = merge(run_dir, loader(run_dir, family))
    expected = logits(loader(run_dir, family)())
    again = AutoModelForCausalLM.from_pretrained(merged.folder, attn_implementation="eager")
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)
    assert merged.report.equal_greedy == 1.0
    assert merged.parameters == tiny_model(family).num_parameters()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("family", ["llama", "qwen3"], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_equals_base_plus_adapter_for_every_adapter(run_dir, kind, family):
    train(run_dir, family, **ADAPTERS[kind])
    merged = merge(run_dir, loader(run_dir, family))
    expected = logits(loader(run_dir, family)())
    again = AutoModelForCausalLM.from_pretrained(merged.folder)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def test_the_base_of_a_16_bit_training_is_merged_in_float32_and_rounded_once(run_dir):
    train(run_dir, dtype=torch.bfloat16)
    merged = merge(run_dir, loader(run_dir, dtype=torch.bfloat16), dtype="bfloat16")
    again = AutoModelForCausalLM.from_pretrained(merged.folder)
    adapter = loader(run_dir)().state_dict()
    name = "model.layers.0.self_attn.q_proj"
    prefix = f"base_model.model.{name}"
    product = (
        adapter[f"{prefix}.lora_B.default.weight"] @ adapter[f"{prefix}.lora_A.default.weight"]
    )
    base = tiny_model().get_submodule(name).weight.detach().bfloat16().float()
    assert torch.equal(again.get_submodule(name).weight, (base + 2.0 * product).bfloat16())
    assert again.dtype == torch.bfloat16
    assert merged.report.dtype == "bfloat16"


def test_a_16_bit_training_gives_an_exact_float32_merge_when_asked(run_dir):
    train(run_dir, strength=0.02, dtype=torch.bfloat16)
    merged = merge(run_dir, loader(run_dir, dtype=torch.bfloat16), dtype="float32")
    assert merged.report.kl_share < 1e-6


def test_merged_holds_all_that_a_user_needs(run_dir):
    train(run_dir)
    merged = merge(run_dir)
    proof = json.loads((merged.folder / VERIFICATION).read_text())
    assert proof["passed"] is True
    assert proof["positions"] == merged.report.positions == 6 * 23
    manifest = read_manifest(merged.folder)
    assert manifest.kind == "merged"
    assert {"model.safetensors", "config.json", "tokenizer.json", VERIFICATION} <= set(
        manifest.files
    )
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert not list(run_dir.root.glob(".*"))


def test_an_adapter_too_weak_for_bfloat16_is_refused(run_dir):
    """A correction below half a unit in the last place vanishes when the sum is rounded."""
    train(run_dir, strength=0.001)
    with pytest.raises(ExportError, match=r"KL.*it was removed.*--dtype float32"):
        merge(run_dir, dtype="bfloat16")
    assert not run_dir.merged.exists()
    assert merge(run_dir, dtype="float32").report.passed


def test_a_refused_merge_is_kept_only_when_asked_and_says_so(run_dir):
    train(run_dir, strength=0.001)
    with pytest.raises(ExportError, match="is kept, marked as failed"):
        merge(run_dir, dtype="bfloat16", keep=True)
    assert json.loads((run_dir.merged / VERIFICATION).read_text())["passed"] is False


def test_another_base_is_refused(run_dir):
    train(run_dir)
    with pytest.raises(ExportError, match="are not those that the adapter was trained on"):
        merge(run_dir, loader(run_dir, seed=1))
    assert not run_dir.merged.exists()


def test_another_base_of_an_adapter_without_manifest_is_refused_by_name(run_dir):
    train(run_dir)
    (run_dir.root / "manifest.json").unlink()
    config = run_dir.root / "adapter_config.json"
    value = json.loads(config.read_text())
    config.write_text(json.dumps({**value, "base_model_name_or_path": "someone/other"}))
    with pytest.raises(ExportError, match="was trained on someone/other, not on tiny"):
        merge(run_dir)


def test_an_earlier_merge_is_replaced_only_when_asked_and_only_by_a_proven_one(run_dir):
    train(run_dir, strength=0.001)
    merge(run_dir)
    before = (run_dir.merged / "model.safetensors").read_bytes()
    with pytest.raises(ExportError, match="--overwrite"):
        merge(run_dir)
    with pytest.raises(ExportError, match="not what was trained"):
        merge(run_dir, dtype="bfloat16", overwrite=True)
    assert (run_dir.merged / "model.safetensors").read_bytes() == before
    merge(run_dir, overwrite=True)
    assert not list(run_dir.root.glob(".*"))


def test_a_run_without_an_adapter_is_refused(run_dir):
    with pytest.raises(ExportError, match="no adapter in"):
        merge(run_dir)
    save_weights(tiny_model(), tiny_tokenizer(), run_dir.root)
    with pytest.raises(ExportError, match="fully trained model"):
        merge(run_dir)


def test_a_damaged_adapter_is_refused(run_dir):
    train(run_dir)
    weights = run_dir.root / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ExportError, match="not what the training wrote"):
        merge(run_dir)
