"""Every kind of adapter is trained, taken up again, loaded, gone on from, merged and verified.

What is in memory after the last step is known by its loss on the held-out rows, to the last bit.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from newtune.config.load import load_config
from newtune.errors import ExportError
from newtune.results import evaluate, load_for_inference, merge
from newtune.run import train
from newtune.run_dir import ADAPTER_WEIGHTS, read_json_lines
from tiny import save_tiny_checkpoint, tiny_tokenizer

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
{targets}
micro_batch_size: 2
max_steps: 4
save_steps: 2
eval_steps: 4
eval_on_start: true
warmup_steps: 0
learning_rate: 0.02
optimizer: adamw_torch
output_dir: {out}
dataset_prepared_path: {cache}
bf16: false
"""
LINEAR = "lora_target_linear: true"
KINDS = {
    # name: (family, targets, further keys)
    "lora": ("llama", LINEAR, ""),
    "dora": ("llama", LINEAR, "peft_use_dora: true"),
    "orthogonal": ("llama", LINEAR, "peft_init_lora_weights: orthogonal"),
    "pissa": ("llama", LINEAR, "peft_init_lora_weights: pissa"),
    "pissa by sampling": ("qwen2", LINEAR, "peft_init_lora_weights: pissa_niter_2"),
    "pissa and dora": ("llama", LINEAR, "peft_init_lora_weights: pissa\npeft_use_dora: true"),
    "olora": ("llama", LINEAR, "peft_init_lora_weights: olora\npeft_use_rslora: true"),
    "eva": ("llama", LINEAR, "peft_init_lora_weights: eva"),
    "loftq": ("llama", LINEAR, "adapter: qlora\npeft: {loftq_config: {loftq_bits: 4}}"),
    "relora": ("llama", LINEAR, "relora_steps: 1"),
    "relora over 4 bit": (
        "llama", LINEAR, "adapter: qlora\nrelora_steps: 2\npeft_use_rslora: true",
    ),
    "lora+": ("llama", LINEAR, "loraplus_lr_ratio: 4"),
    "one layer": ("qwen3", "lora_target_modules: [q_proj]", "peft_layers_to_transform: [1]"),
    "modules": (
        "llama", "lora_target_modules: [q_proj]", "lora_modules_to_save: [embed_tokens, lm_head]",
    ),
    "experts": (
        "qwen3_moe",
        "lora_target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]",
        "lora_dropout: 0",
    ),
    "transposed": ("gpt2", "lora_target_modules: [c_attn]", "lora_fan_in_fan_out: true"),
    "transposed pissa": (
        "gpt2", "lora_target_modules: [c_attn]", "peft_init_lora_weights: pissa",
    ),
}  # fmt: skip
ORDINARY = ("orthogonal", "eva", "lora+")
"""Kinds that leave files like those of `lora`, and are merged like it."""
MUTATING = [name for name in KINDS if "pissa" in name or name == "olora"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that trains a kind of adapter once and gives its folder and config."""
    root: Path = tmp_path_factory.mktemp("kinds")
    data = root / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    done: dict[str, Path] = {}

    def trained(kind: str) -> Path:
        if kind not in done:
            family, targets, further = KINDS[kind]
            model = root / family
            if not model.exists():
                save_tiny_checkpoint(model, family)
            folder = root / kind.replace(" ", "-")
            folder.mkdir()
            base = CONFIG.format(
                model=model, data=data, targets=targets, out=folder / "out", cache=root / "cache"
            )
            keys = [line for line in base.splitlines() if not_repeated(line, further)]
            (folder / "config.yaml").write_text("\n".join([*keys, further]))
            train(config_of(folder))
            done[kind] = folder
        return done[kind]

    return trained


def not_repeated(line: str, further: str) -> bool:
    return not line or f"{line.partition(':')[0]}:" not in further


def config_of(folder: Path, *overrides: str):
    return load_config(folder / "config.yaml", list(overrides))


def losses(out: Path) -> list[float]:
    lines = read_json_lines(out / "metrics.jsonl")
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_learns_and_what_is_loaded_is_what_was_trained(runs, kind):
    folder = runs(kind)
    first, last = losses(folder / "out")
    assert last != first
    loaded = evaluate(config_of(folder))
    assert loaded.which == "adapter"
    # rounds of ReLoRA are added up in another order once they are one LoRA
    exact = last if "relora" not in kind else pytest.approx(last, rel=1e-6)
    assert loaded.scores["eval_loss"] == exact


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_to_the_last_bit(runs, kind, tmp_path):
    folder = runs(kind)
    half = tmp_path / "out"
    shutil.copytree(folder / "out" / "checkpoint-2", half / "checkpoint-2")
    for name in ("inputs.json", "newtune.yaml"):
        shutil.copy(folder / "out" / name, half / name)
    train(config_of(folder, "--output_dir", str(half), "--auto_resume_from_checkpoints", "true"))
    whole = (folder / "out" / ADAPTER_WEIGHTS).read_bytes()
    assert (half / ADAPTER_WEIGHTS).read_bytes() == whole
    assert losses(half)[-1] == losses(folder / "out")[-1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ORDINARY])
def test_the_merged_model_is_the_trained_one(runs, kind):
    folder = runs(kind)
    merged = merge(config_of(folder), overwrite=True)
    assert merged.report.passed
    scores = evaluate(config_of(folder), which="merged").scores
    assert scores["eval_loss"] == pytest.approx(losses(folder / "out")[-1], rel=1e-5)


@pytest.mark.parametrize("kind", ["olora", "pissa by sampling", "pissa and dora", "experts"])
def test_another_run_goes_on_from_where_it_ended(runs, kind, tmp_path):
    folder = runs(kind)
    drop = ("lora_r", "lora_dropout", "lora_target", "peft_", "lora_fan")
    lines = (folder / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(drop)]
    (tmp_path / "config.yaml").write_text("\n".join(kept))
    model_dir = ("--lora_model_dir", str(folder / "out"), "--output_dir", str(tmp_path / "out"))
    train(config_of(tmp_path, *model_dir, "--max_steps", "1", "--eval_steps", "1"))
    assert losses(tmp_path / "out")[0] == losses(folder / "out")[-1]


@pytest.mark.parametrize("kind", ["pissa", "olora", "transposed pissa", "relora"])
def test_peft_alone_loads_the_same_model(runs, kind):
    folder = runs(kind)
    config = config_of(folder)
    plain = AutoModelForCausalLM.from_pretrained(config.model.base_model, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, folder / "out").eval()
    ours = load_for_inference(config, which="adapter").model
    tokens = torch.tensor([[7, 8, 9, 10, 11]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits)


@pytest.mark.parametrize("kind", ["lora", "pissa", "olora"])
def test_an_adapter_that_learned_nothing_is_not_merged(runs, kind, tmp_path):
    """What PiSSA takes out of the base is no news: the proof looks at the base as it was."""
    folder = runs(kind)
    still = ("--learning_rate", "1e-12", "--output_dir", str(tmp_path / "out"), "--eval_steps", "")
    config = config_of(folder, *still, "--max_steps", "1", "--save_steps", "1")
    train(config)
    with pytest.raises(ExportError, match=r"not what was trained"):
        merge(config)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_base_that_differs_where_the_adapter_takes_from_is_another_base(runs, kind, tmp_path):
    folder, other = runs(kind), tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(config_of(folder).model.base_model)
    model.get_submodule("model.layers.0.mlp.up_proj").weight.data[0, 0] += 0.5
    model.save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(ExportError, match="are not those that the adapter was trained on"):
        merge(config_of(folder, "--base_model", str(other)), overwrite=True)
