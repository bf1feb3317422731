"""LoRA over bases that are stored packed: trained, resumed, loaded, merged into their weights.

What is in memory after the last step is known by its loss on the held-out rows, to the last bit.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from newtune.config.load import load_config
from newtune.errors import ExportError
from newtune.model.load import load_base
from newtune.prepare import prepare
from newtune.run import evaluate, merge, train
from newtune.run_dir import ADAPTER_WEIGHTS, read_json_lines
from tiny_quantized import needs_gptqmodel, save_quantized_checkpoint, stood_for

ROWS = [
    {"instruction": f"Say {word}", "output": f"{word} {word}"}
    for word in ("river", "bridge", "city", "paris", "week", "story", "model", "morning")
]
CONFIG = """
base_model: {model}
datasets: [{{path: {data}, type: alpaca}}]
val_set_size: 2
sequence_len: 128
adapter: lora
lora_r: 4
lora_dropout: 0.1
lora_target_linear: true
micro_batch_size: 2
max_steps: 8
save_steps: 4
eval_steps: 8
eval_on_start: true
warmup_steps: 0
learning_rate: 0.02
optimizer: adamw_torch
output_dir: {out}
dataset_prepared_path: {cache}
{further}
"""
TOKENS = torch.tensor([[7, 8, 9, 10, 11]])
KINDS = {
    # name: (packed by, further keys)
    "awq": ("awq", "bf16: false"),
    "awq, bf16": ("awq", "bf16: true\ngradient_checkpointing: true\npeft_use_dora: true"),
    "awq, eva": ("awq", "bf16: false\npeft_init_lora_weights: eva"),
    "gptq": ("gptq", "gptq: true\nbf16: false"),
    "gptq, bf16": ("gptq", "bf16: true\ngradient_checkpointing: true"),
    "gptq, 8 bit": ("gptq-8", "bf16: false\npeft_use_rslora: true"),
    "gptq, second format, eva": ("gptq-v2", "bf16: false\npeft_init_lora_weights: eva"),
    "gptq, relora": ("gptq", "bf16: false\nrelora_steps: 4"),
}


def _marked(kind: str):
    gptq, further = kind.startswith("gptq"), ", " in kind
    marks = [needs_gptqmodel] if gptq else [pytest.mark.slow] if further else []
    return pytest.param(kind, marks=marks)


every_kind = pytest.mark.parametrize("kind", [_marked(kind) for kind in KINDS])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that trains on a kind of base once and gives its configuration."""
    root: Path = tmp_path_factory.mktemp("packed")
    (root / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))

    def trained(kind: str):
        method, further = KINDS[kind]
        folder = root / kind.replace(" ", "-").replace(",", "")
        base = root / "bases" / method
        file = folder / "config.yaml"
        if not file.exists():
            if not base.exists():
                save_quantized_checkpoint(base, method)
            folder.mkdir()
            keys = {"data": root / "rows.jsonl", "out": folder / "out", "cache": root / "cache"}
            file.write_text(CONFIG.format(model=base, further=further, **keys))
            train(load_config(file, []))
        return load_config(file, [])

    return trained


def out(config) -> Path:
    return Path(config.output.output_dir)


def losses(folder: Path) -> list[float]:
    lines = read_json_lines(folder / "metrics.jsonl")
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def base_of(config, **options):
    return load_base(prepare(config).plan.model, **options)


@every_kind
def test_the_weights_are_those_that_were_packed(runs, kind):
    config = runs(kind)
    model = base_of(config, dequantized=True)
    expected = stood_for(Path(config.model.base_model))
    for name, weight in expected.items():
        assert torch.equal(model.get_submodule(name).weight.float(), weight), name
    with torch.no_grad():
        packed = base_of(config)(TOKENS).logits.float()
        plain = model.to(packed.dtype)(TOKENS).logits
    bits = 8 if config.compute.bf16 else 22
    torch.testing.assert_close(packed, plain, rtol=0, atol=8 * float(plain.abs().max()) / 2**bits)


@every_kind
def test_it_learns_and_what_is_loaded_is_what_was_trained(runs, kind):
    config = runs(kind)
    lines = read_json_lines(out(config) / "metrics.jsonl")
    trained = [line["loss"] for line in lines if "loss" in line]
    assert trained[-1] < 0.9 * trained[0]
    scores = evaluate(config, which="adapter").scores
    exact = losses(out(config))[-1]
    # rounds of ReLoRA are added up in another order once they are one LoRA
    expected = pytest.approx(exact, rel=1e-6) if "relora" in kind else exact
    assert scores["eval_loss"] == expected


@every_kind
def test_a_resumed_run_is_the_same_to_the_last_bit(runs, kind, tmp_path):
    whole = out(runs(kind))
    half = tmp_path / "out"
    shutil.copytree(whole / "checkpoint-4", half / "checkpoint-4")
    for name in ("inputs.json", "newtune.yaml"):
        shutil.copy(whole / name, half / name)
    again = ("--output_dir", str(half), "--auto_resume_from_checkpoints", "true")
    train(load_config(whole.parent / "config.yaml", again))
    assert (half / ADAPTER_WEIGHTS).read_bytes() == (whole / ADAPTER_WEIGHTS).read_bytes()
    assert losses(half)[-1] == losses(whole)[-1]


@every_kind
def test_the_merged_model_is_the_trained_one(runs, kind, caplog):
    caplog.set_level("INFO")
    config = runs(kind)
    merged = merge(config, dtype="float16", overwrite=True)
    assert merged.report.passed
    assert merged.report.base_bits == (8 if "8 bit" in kind else 4)
    assert merged.report.base_method == KINDS[kind][0].partition("-")[0]
    assert "the whole base is loaded" not in caplog.text
    values = json.loads((merged.folder / "config.json").read_text())
    assert "quantization_config" not in values
    weights = load_file(merged.folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    scores = evaluate(config, which="merged").scores
    assert scores["eval_loss"] == pytest.approx(losses(out(config))[-1], rel=0.02)


@pytest.mark.parametrize("kind", [pytest.param("awq", marks=pytest.mark.slow), _marked("gptq")])
def test_another_base_is_told_by_its_packed_weights(runs, kind, tmp_path):
    """The rest of the two checkpoints is the same."""
    config = runs(kind)
    base = shutil.copytree(config.model.base_model, tmp_path / kind)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.qweight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    other = load_config(out(config).parent / "config.yaml", ("--base_model", str(base)))
    with pytest.raises(ExportError, match="are not those that the adapter was trained on"):
        merge(other, overwrite=True)
