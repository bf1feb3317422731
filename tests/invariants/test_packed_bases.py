"""LoRA over bases that are stored packed: trained, resumed, loaded, merged into their weights.

What is in memory after the last step is known by its loss on the held-out rows, to the last bit.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TorchAoConfig

from newtune.config.load import load_config
from newtune.errors import ExportError
from newtune.model.load import load_base
from newtune.prepare import prepare
from newtune.results import evaluate, merge
from newtune.run import train
from newtune.run_dir import ADAPTER_WEIGHTS, read_json_lines
from tiny import tiny_model, tiny_tokenizer
from tiny_quantized import (
    GROUP,
    WIDE,
    needs_gptqmodel,
    needs_torchao,
    save_quantized_checkpoint,
    stood_for,
)

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
    "torchao": ("torchao", "bf16: false"),
    "torchao, 4 bit, bf16": (
        "torchao-4",
        "bf16: true\ngradient_checkpointing: true\npeft_use_dora: true",
    ),
    "torchao, float8": ("torchao-float8", "bf16: false\npeft_use_rslora: true"),
    "torchao, eva": ("torchao-4", "bf16: false\npeft_init_lora_weights: eva"),
    "torchao, relora": ("torchao", "bf16: false\nrelora_steps: 4"),
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
    eight = KINDS[kind][0] in ("gptq-8", "torchao", "torchao-float8")
    assert merged.report.base_bits == (8 if eight else 4)
    assert merged.report.base_method == KINDS[kind][0].partition("-")[0]
    assert "the whole base is loaded" not in caplog.text
    values = json.loads((merged.folder / "config.json").read_text())
    assert "quantization_config" not in values
    weights = load_file(merged.folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    scores = evaluate(config, which="merged").scores
    assert scores["eval_loss"] == pytest.approx(losses(out(config))[-1], rel=0.02)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("awq", "torchao")]


@pytest.mark.parametrize("kind", [*SLOW, _marked("gptq")])
def test_another_base_is_told_by_its_packed_weights(runs, kind, tmp_path):
    """The rest of the two checkpoints is the same."""
    config = runs(kind)
    base = shutil.copytree(config.model.base_model, tmp_path / kind)
    weights = load_file(base / "model.safetensors")
    packed = "_weight_qdata" if kind == "torchao" else "qweight"
    weights[f"model.layers.0.mlp.up_proj.{packed}"][0, 0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    other = load_config(out(config).parent / "config.yaml", ("--base_model", str(base)))
    with pytest.raises(ExportError, match="are not those that the adapter was trained on"):
        merge(other, overwrite=True)


@needs_torchao
@pytest.mark.parametrize("method", ["torchao", "torchao-4", "torchao-float8"])
def test_what_torchao_saved_is_what_is_read(method, tmp_path):
    """And the checkpoints of the other tests look as those that transformers writes with it."""
    from torchao import quantization

    kind = {
        "torchao": quantization.Int8WeightOnlyConfig(),
        "torchao-4": quantization.IntxWeightOnlyConfig(torch.int4, quantization.PerGroup(GROUP)),
        "torchao-float8": quantization.Float8WeightOnlyConfig(),
    }[method]
    plain = tiny_model("llama", **WIDE)
    plain.to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.bfloat16, quantization_config=TorchAoConfig(kind)
    )
    base = tmp_path / "base"
    theirs.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    made = save_quantized_checkpoint(tmp_path / "made", method)
    _require_alike(base, made)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    keys = {"data": tmp_path / "rows.jsonl", "out": tmp_path / "out", "cache": tmp_path / "cache"}
    (tmp_path / "c.yaml").write_text(CONFIG.format(model=base, further="bf16: true", **keys))
    ours = base_of(load_config(tmp_path / "c.yaml", []), dequantized=True)
    for name in stood_for(made):
        expected = theirs.get_submodule(name).weight.dequantize()
        assert torch.equal(ours.get_submodule(name).weight.to(expected.dtype), expected), name


def _require_alike(base: Path, made: Path) -> None:
    one, other = (
        json.loads((folder / "config.json").read_text())["quantization_config"]["quant_type"]
        for folder in (base, made)
    )
    theirs, ours = one["default"], other["default"]
    assert {**theirs, "_data": {**theirs["_data"], **ours["_data"]}} == theirs
    shapes = [
        {name: (t.shape, t.dtype) for name, t in load_file(folder / "model.safetensors").items()}
        for folder in (base, made)
    ]
    packed = [{n: of for n, of in each.items() if "._weight_" in n} for each in shapes]
    assert packed[0] == packed[1]
