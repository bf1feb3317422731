"""Checkpoints in FP8 and MXFP4 are loaded as ordinary weights, and merged models quantised anew.

What a checkpoint stands for is known from when it was packed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from newtune.config.load import load_config
from newtune.model.load import load_base
from newtune.outputs.requantize import REPORT, quantize_merged
from newtune.plan.parts import QuantizationPlan
from newtune.prepare import prepare
from newtune.results import evaluate, merge
from newtune.run import train
from newtune.run_dir import read_json_lines
from newtune.types import Example
from tiny import save_tiny_checkpoint, tiny_tokenizer
from tiny_quantized import save_mxfp4_checkpoint, save_quantized_checkpoint, stood_for

CONFIG = """
base_model: {model}
datasets: [{{path: {rows}, type: alpaca}}]
val_set_size: 2
sequence_len: 128
adapter: lora
lora_r: 4
lora_target_modules: [q_proj, v_proj, up_proj]
micro_batch_size: 2
max_steps: 3
eval_steps: 3
warmup_steps: 0
learning_rate: 0.02
optimizer: adamw_torch
bf16: false
output_dir: {out}
dataset_prepared_path: {cache}
"""


def configured(folder: Path, base: Path, *further: str):
    words = ("river", "bridge", "city", "week", "story", "paris")
    rows = [{"instruction": f"Say {word}", "output": word} for word in words]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {"rows": folder / "rows.jsonl", "out": folder / "out", "cache": folder / "cache"}
    (folder / "config.yaml").write_text(CONFIG.format(model=base, **keys))
    return load_config(folder / "config.yaml", further)


@pytest.mark.slow
def test_fp8_trains_and_merges_into_16_bit(tmp_path):
    base = save_quantized_checkpoint(tmp_path / "base", "fp8")
    config = configured(tmp_path, base)
    plan = prepare(config).plan
    assert plan.model.quantization is None
    assert any("stored in FP8 and dequantised" in text for text in plan.notices)
    model = load_base(plan.model)
    for name, weight in stood_for(base).items():
        assert torch.equal(model.get_submodule(name).weight, weight), name
    train(config)
    merged = merge(config, dtype="bfloat16", quantize="nf4")
    assert merged.report.passed
    assert merged.quantized == tmp_path / "out" / "merged-nf4"
    assert merged.quantizing_loss is not None
    assert 0 < merged.quantizing_loss.kl < 1
    assert "quantization_config" not in json.loads((merged.folder / "config.json").read_text())
    weights = load_file(merged.folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert set(weights) == set(model.state_dict())
    lines = read_json_lines(tmp_path / "out" / "metrics.jsonl")
    trained = [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    assert evaluate(config, which="merged").scores["eval_loss"] == pytest.approx(trained, rel=0.02)


def test_a_merged_model_is_quantised_once_more_and_the_loss_is_that_of_its_files(tmp_path):
    """Two forms of one model: a wider one loses less; both are bases again."""
    merged = save_tiny_checkpoint(tmp_path / "merged", hidden_size=64, intermediate_size=128)
    ids = np.arange(5, 60)
    rows = [Example(ids, ids.copy()), Example(ids[::-1].copy(), ids[::-1].copy())]
    losses = {}
    for form in ("nf4", "int8"):
        folder, loss = quantize_merged(merged, rows, tiny_tokenizer(), form=form, device="cpu")
        losses[form] = loss
        assert folder == tmp_path / f"merged-{form}"
        assert json.loads((folder / REPORT).read_text())["kl"] == loss.kl
        assert loss.bytes_quantized < loss.bytes_merged
        assert loss.positions == 2 * 54
        with torch.no_grad():
            tokens = torch.from_numpy(ids)[None]
            plain, quantized = (
                AutoModelForCausalLM.from_pretrained(path)(tokens).logits[0, :-1].double()
                for path in (merged, folder)
            )
        log_p, log_q = plain.log_softmax(-1), quantized.log_softmax(-1)
        by_hand = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        assert loss.kl == pytest.approx(by_hand, rel=0.5)  # of both rows
    assert 0 < losses["int8"].kl < losses["nf4"].kl
    plan = prepare(configured(tmp_path, tmp_path / "merged-nf4")).plan.model
    assert plan.quantization == QuantizationPlan(4, {}, stored=True)


def test_fp8_is_quantised_anew_by_bitsandbytes(tmp_path):
    base = save_quantized_checkpoint(tmp_path / "base", "fp8")
    plan = prepare(configured(tmp_path, base, "--adapter", "qlora")).plan
    model = load_base(plan.model, dequantized=True)
    for name, weight in stood_for(base).items():
        off = (model.get_submodule(name).weight - weight).abs().max() / weight.abs().max()
        assert 0 < off < 0.2, name


def test_mxfp4_experts_are_those_that_were_packed(tmp_path):
    base = save_mxfp4_checkpoint(tmp_path / "base")
    plan = prepare(configured(tmp_path, base, "--lora_target_modules", "[q_proj]")).plan
    assert any("stored in MXFP4 and dequantised" in text for text in plan.notices)
    model = load_base(plan.model)
    for name, weight in stood_for(base).items():
        assert torch.equal(model.get_parameter(name), weight), name
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(saved) == {name for name, _ in model.named_parameters()}


def test_lora_on_mxfp4_experts_trains_and_its_merge_is_proven(tmp_path):
    """Only the experts that are named differ from what was packed."""
    base = save_mxfp4_checkpoint(tmp_path / "base")
    targets = ("--lora_target_modules", "[q_proj]", "--lora_dropout", "0")
    experts = ("--lora_target_parameters", "[mlp.experts.down_proj]")
    config = configured(tmp_path, base, *targets, *experts)
    train(config)
    out = tmp_path / "out"
    adapter = load_file(out / "adapter_model.safetensors")
    sides = {name: value for name, value in adapter.items() if ".experts." in name}
    assert sides
    assert all(value.any() for value in sides.values())
    lines = read_json_lines(out / "metrics.jsonl")
    trained = [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    assert evaluate(config, which="adapter").scores["eval_loss"] == trained
    merged = merge(config, dtype="float32")
    assert merged.report.passed
    assert "quantization_config" not in json.loads((merged.folder / "config.json").read_text())
    weights = load_file(merged.folder / "model.safetensors")
    for name, weight in stood_for(base).items():
        assert torch.equal(weights[name], weight) == name.endswith("gate_up_proj"), name
