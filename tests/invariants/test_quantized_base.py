"""LoRA over a base in 4 or 8 bit: what is stored, what is computed, and what merging loses."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig

from newtune.config.load import load_config
from newtune.config.quantization import BNB_OPTIONS
from newtune.errors import ConfigError, ModelError, SetupError
from newtune.model.load import load_base
from newtune.prepare import prepare
from newtune.results import evaluate, merge
from newtune.run import train
from tiny import save_tiny_checkpoint

ROWS = [
    {"instruction": f"Say {word}", "output": f"{word} {word}"}
    for word in ("river", "bridge", "city", "paris", "week", "story", "model", "morning")
]
CONFIG = """
base_model: {model}
datasets: [{{path: {data}, type: alpaca}}]
val_set_size: 2
sequence_len: 160
sample_packing: true
adapter: lora
lora_r: 4
lora_dropout: 0.0
lora_target_linear: true
micro_batch_size: 1
max_steps: 6
learning_rate: 0.02
optimizer: adamw_torch
output_dir: {out}
dataset_prepared_path: {cache}
bf16: false
"""
TOKENS = torch.tensor([[7, 8, 9, 10, 11]])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Widths of multiples of 64, as all real models have."""
    folder = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(folder, hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("gpt2"), "gpt2")


def config(tmp_path, base, *overrides, name="run"):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    file = tmp_path / "config.yaml"
    file.write_text(
        CONFIG.format(model=base, data=data, out=tmp_path / name, cache=tmp_path / "cache")
    )
    return load_config(file, overrides)


def base_of(configuration, **options):
    return load_base(prepare(configuration).plan.model, **options)


def layers(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


FOUR_BIT = ("--load_in_4bit", "true")
EIGHT_BIT = ("--load_in_8bit", "true")


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [(FOUR_BIT, Linear4bit), (("--adapter", "qlora"), Linear4bit), (EIGHT_BIT, Linear8bitLt)],
)
def test_every_linear_layer_but_the_head_is_quantised(tmp_path, base, overrides, kind):
    model = base_of(config(tmp_path, base, *overrides))
    assert len(layers(model, kind)) == 14
    assert type(model.get_submodule("lm_head")) is nn.Linear


def test_layers_of_a_class_of_their_own_are_quantised_too(tmp_path):
    """Falcon's linear layers are a class of transformers that bitsandbytes passes over."""
    wide = {"hidden_size": 64, "ffn_hidden_size": 128}
    falcon = save_tiny_checkpoint(tmp_path / "falcon", "falcon", **wide)
    configuration = config(tmp_path, falcon, *FOUR_BIT, "--sample_packing", "false")
    assert len(layers(base_of(configuration), Linear4bit)) == 8
    plain = base_of(configuration, dequantized=True)
    assert type(plain.get_submodule("transformer.h.0.mlp.dense_h_to_4h")) is not nn.Linear


def test_a_base_of_which_nothing_is_quantised_is_refused(tmp_path, base):
    option = (
        "{llm_int8_skip_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}"
    )
    with pytest.raises(ModelError, match="nothing of this `llama` is stored in 4 bit"):
        base_of(config(tmp_path, base, *FOUR_BIT, "--bnb_config_kwargs", option))


def test_the_forward_is_that_of_the_weights_it_stands_for(tmp_path, base):
    """The second path takes the weights out of bitsandbytes one by one."""
    quantized = base_of(config(tmp_path, base, *FOUR_BIT))
    plain = base_of(config(tmp_path, base, name="plain"))
    for name, layer in layers(quantized, Linear4bit).items():
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        target = plain.get_submodule(name).weight
        assert 0 < (weight - target).abs().max() < 0.2 * target.abs().max()
        target.data.copy_(weight)
    with torch.no_grad():
        torch.testing.assert_close(
            quantized(TOKENS).logits, plain(TOKENS).logits, rtol=1e-4, atol=1e-4
        )
        dequantized = base_of(config(tmp_path, base, *FOUR_BIT), dequantized=True)
        torch.testing.assert_close(
            dequantized(TOKENS).logits, plain(TOKENS).logits, rtol=1e-4, atol=1e-4
        )
    assert not layers(dequantized, Linear4bit)


@pytest.mark.parametrize(
    "option",
    [
        "{bnb_4bit_quant_type: fp4}",
        "{bnb_4bit_use_double_quant: false}",
        "{bnb_4bit_compute_dtype: bfloat16}",
        "{llm_int8_skip_modules: [q_proj]}",
    ],
)
def test_options_act(tmp_path, base, option):
    default = base_of(config(tmp_path, base, *FOUR_BIT))
    changed = base_of(config(tmp_path, base, *FOUR_BIT, "--bnb_config_kwargs", option))
    with torch.no_grad():
        assert not torch.equal(default(TOKENS).logits, changed(TOKENS).logits)
    assert type(changed.get_submodule("lm_head")) is nn.Linear


def test_the_threshold_of_8_bit_acts(tmp_path, base):
    default = base_of(config(tmp_path, base, *EIGHT_BIT))
    option = ("--bnb_config_kwargs", "{llm_int8_threshold: 0.5}")
    changed = base_of(config(tmp_path, base, *EIGHT_BIT, *option))
    with torch.no_grad():
        assert not torch.equal(default(TOKENS).logits, changed(TOKENS).logits)


def test_bitsandbytes_has_the_options_that_are_passed_on():
    known = set(inspect.signature(BitsAndBytesConfig.__init__).parameters)
    assert known >= set(BNB_OPTIONS)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("{bnb_4bit_quant_typ: nf4}", "did you mean `bnb_4bit_quant_type`"),
        ("{bnb_4bit_quant_type: nf5}", "one of nf4, fp4"),
        ("{load_in_4bit: true}", "key of its own"),
        ("{llm_int8_threshold: high}", "a number"),
    ],
)
def test_wrong_options_are_found_in_the_file(tmp_path, base, option, says):
    with pytest.raises(ConfigError, match=says):
        config(tmp_path, base, *FOUR_BIT, "--bnb_config_kwargs", option)


@pytest.mark.parametrize("overrides", [FOUR_BIT, EIGHT_BIT, (*FOUR_BIT, "--bf16", "true")])
def test_a_run_trains_the_adapter_merges_and_proves_it(tmp_path, base, overrides):
    """From the first loss to the merged model; the merge is into dequantised weights."""
    run = config(tmp_path, base, *overrides, "--max_steps", "40")
    report = train(run)
    losses = [line["loss"] for line in metrics(report.folder) if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    adapted = evaluate(run, which="adapter").scores["eval_loss"]
    merged = merge(run)
    assert merged.report.passed
    assert evaluate(run, which="merged").scores["eval_loss"] == pytest.approx(adapted, rel=0.05)
    weights = load_file(merged.folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.bfloat16}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_layers_of_gpt2_are_turned_around_and_back(tmp_path, gpt2):
    """bitsandbytes stores (out, in); GPT-2's own layers hold (in, out)."""
    run = config(tmp_path, gpt2, *FOUR_BIT)
    quantized, dequantized = base_of(run), base_of(run, dequantized=True)
    with torch.no_grad():
        torch.testing.assert_close(
            dequantized.eval()(TOKENS).logits, quantized.eval()(TOKENS).logits, rtol=1e-4, atol=1e-4
        )


def test_evaluations_do_not_change_the_training(tmp_path, base):
    """A quantised layer may store its weights anew for an evaluation; ours does not."""
    weights = []
    for name, more in {"without": (), "with": ("--eval_steps", "1")}.items():
        run = config(tmp_path, base, *FOUR_BIT, "--bf16", "true", *more, name=name)
        train(run)
        weights.append(load_file(Path(run.output.output_dir) / "adapter_model.safetensors"))
    without, with_evaluations = weights
    assert all(torch.equal(without[name], with_evaluations[name]) for name in without)


def test_a_checkpoint_that_is_quantised_already(tmp_path, base):
    stored = tmp_path / "stored"
    base_of(config(tmp_path, base, *FOUR_BIT)).save_pretrained(stored)
    for file in base.glob("tokenizer*"):
        (stored / file.name).write_bytes(file.read_bytes())
    run = config(tmp_path, stored)
    plan = prepare(run).plan
    assert plan.model.quantization is not None
    assert plan.model.quantization.stored
    train(run)
    merge(run)
    with pytest.raises(ConfigError, match="nothing of it can be trained without an adapter"):
        prepare(config(tmp_path, stored, "--adapter", ""))
    with pytest.raises(ConfigError, match="8 bit are asked for"):
        prepare(config(tmp_path, stored, *EIGHT_BIT))


def test_other_quantised_checkpoints_are_refused_by_name(tmp_path, base):
    folder = tmp_path / "hqq"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "hqq"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="quantised by `hqq`"):
        prepare(config(tmp_path, folder))


def test_without_the_package_the_line_to_install_it_is_given(tmp_path, base, monkeypatch):
    plan = prepare(config(tmp_path, base, *FOUR_BIT)).plan.model
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'newtune\[qlora\]'"):
        load_base(plan)


def test_initialisations_that_need_plain_weights_are_refused(tmp_path, base):
    with pytest.raises(ConfigError, match="quantised base cannot give"):
        config(tmp_path, base, *FOUR_BIT, "--peft_init_lora_weights", "pissa")


def test_a_short_training_in_8_bit_merges(tmp_path, base):
    """What 8-bit layers round off their inputs is more than what small steps have changed."""
    configuration = config(tmp_path, base, *EIGHT_BIT, "--learning_rate", "1e-4")
    train(configuration)
    report = merge(configuration).report
    assert report.passed
    assert report.kl_share < 1e-4
    assert report.kl_as_trained > 1e-2 * report.kl_base
