"""Keys whose effect is seen in what is read, in the batches, in the plan, or in a notice.

Each test changes one key of a whole configuration and looks at what came of it.
"""

import json
import shutil

import pytest
import torch

from newtune.config.load import load_config
from newtune.distributed.world import World
from newtune.errors import ConfigError, ModelError, NewtuneError
from newtune.model.load import load_model
from newtune.plan.plan import make_plan, plan_model_side
from newtune.prepare import model_facts, model_side, prepare, training_data
from newtune.run import train
from tiny import save_tiny_checkpoint, tiny_tokenizer

WORDS = ("river", "bridge " * 6, "city", "paris " * 3, "week", "story " * 8, "model", "answer")
ROWS = [
    {"instruction": f"Say {word}", "input": "now", "output": f"{word} {word}", "rules": "Be brief"}
    for word in WORDS
]
BASE = """
base_model: model
datasets:
  - path: rows.jsonl
    type: alpaca
sequence_len: 256
adapter: lora
lora_target_linear: true
micro_batch_size: 2
learning_rate: 0.001
output_dir: out
dataset_prepared_path: cache
bf16: false
"""
OWN_PROMPT = """\
    type:
      format: '[{instruction}|{input}]'
      no_input_format: '[{instruction}]'
"""
HELD_OUT = ("--val_set_size", "4")
PACKED = ("--sample_packing", "true", "--sequence_len", "400")
GPU = World(0, 1, "cuda:0", 1, bf16_is_fast=True)
OLD_GPU = World(0, 1, "cuda:0", 1, bf16_is_fast=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    save_tiny_checkpoint(folder / "model")
    save_tiny_checkpoint(folder / "deep", num_hidden_layers=3)
    save_tiny_checkpoint(folder / "short", max_position_embeddings=64)
    save_tiny_checkpoint(folder / "gpt2", "gpt2")
    save_tiny_checkpoint(folder / "experts", "mixtral")
    lines = "\n".join(map(json.dumps, ROWS))
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.data").write_text(lines)
    (folder / "parts").mkdir()
    (folder / "parts" / "a.jsonl").write_text(lines)
    (folder / "parts" / "b.jsonl").write_text("\n".join(map(json.dumps, ROWS[:3])))
    (folder / "run.yaml").write_text(BASE)
    (folder / "own.yaml").write_text(BASE.replace("    type: alpaca\n", OWN_PROMPT))
    return folder


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def prepared(*overrides, file="run.yaml"):
    return prepare(load_config(file, overrides))


def shapes(*overrides):
    """Return the (rows, tokens) of each training batch."""
    batches = training_data(prepared(*overrides)).train
    return [tuple(batches[index]["input_ids"].shape) for index in range(len(batches))]


def first_text(*overrides, file="run.yaml"):
    run = prepared(*overrides, "--shuffle_merged_datasets", "false", file=file)
    return run.tokenizer.decode(run.data.train[0].input_ids)


def planned_on(world, *overrides):
    """Return the plan as another machine would make it."""
    config = load_config("run.yaml", overrides)
    side = plan_model_side(config, world, model_facts(config))
    return make_plan(config, world, side, prepared().data.facts)


# Model and tokenizer


def test_base_model():
    assert prepared().plan.model_facts.layers == 2
    assert prepared("--base_model", "deep").plan.model_facts.layers == 3


def test_base_model_config():
    with pytest.raises(ConfigError, match="positions end at 64"):
        prepared("--base_model_config", "short")


def test_tokenizer_type():
    assert type(prepared().tokenizer).__name__ != "GPT2Tokenizer"
    assert type(prepared("--tokenizer_type", "GPT2Tokenizer").tokenizer).__name__ == "GPT2Tokenizer"


def test_tokenizer_legacy():
    assert "legacy" not in prepared().tokenizer.init_kwargs
    assert prepared("--tokenizer_legacy", "true").tokenizer.init_kwargs["legacy"] is True
    (notice,) = load_config("run.yaml", ("--tokenizer_legacy", "true")).notices
    assert "tokenizer.json" in notice


@pytest.mark.parametrize("family", ["mistral", "falcon", "qwen"])
def test_a_family_flag_that_contradicts_the_checkpoint(family):
    with pytest.raises(ConfigError, match=f"is_{family}_derived_model: contradicts"):
        prepared(f"--is_{family}_derived_model", "true")


@pytest.mark.parametrize("family", ["llama", "falcon", "qwen"])
def test_a_family_flag_where_the_type_is_another(family):
    run = prepared("--base_model", "gpt2", f"--is_{family}_derived_model", "true")
    assert any("changes nothing" in text for text in run.plan.notices)


def test_the_mistral_flag_where_the_type_is_another():
    assert prepared("--base_model", "gpt2").tokenizer.padding_side == "right"
    run = prepared("--base_model", "gpt2", "--is_mistral_derived_model", "true")
    assert run.tokenizer.padding_side == "left"


# Precision and devices


@pytest.mark.parametrize(
    ("key", "value", "world", "expected"),
    [
        ("fp16", "true", GPU, ("float16", "float32", "float16", None)),
        ("float16", "true", GPU, ("float16", "float16", None, None)),
        ("tf32", "true", GPU, ("bfloat16", "float32", "bfloat16", True)),
        ("tf32", "false", GPU, ("bfloat16", "float32", "bfloat16", False)),
        ("tf32", "auto", GPU, ("bfloat16", "float32", "bfloat16", True)),
        ("tf32", "auto", OLD_GPU, ("float16", "float32", "float16", False)),
    ],
)
def test_precision_keys(key, value, world, expected):
    precision = planned_on(world, "--bf16", "", f"--{key}", value).model.precision
    assert tuple(vars(precision).values()) == expected


def test_tf32_that_the_gpu_has_not_is_refused():
    with pytest.raises(ConfigError, match="tf32: this GPU has no TF32"):
        planned_on(OLD_GPU, "--bf16", "", "--tf32", "true")


@pytest.mark.parametrize("key", ["tf32", "dataloader_pin_memory"])
def test_what_is_for_gpus_is_answered_on_a_cpu(key):
    notices = prepared(f"--{key}", "true").plan.notices
    assert f"`{key}` has no effect in this run" in " ".join(notices)


def test_dataloader_pin_memory():
    assert planned_on(GPU).training.dataloader_pin_memory
    assert not planned_on(GPU, "--dataloader_pin_memory", "false").training.dataloader_pin_memory


# Rows


def test_dataset_path():
    assert len(prepared("--datasets.0.path", "parts/b.jsonl").data.train) == 3


def test_data_files():
    parts = ("--datasets.0.path", "parts")
    assert len(prepared(*parts).data.train) == 11
    assert len(prepared(*parts, "--datasets.0.data_files", "b.jsonl").data.train) == 3


def test_ds_type():
    other = ("--datasets.0.path", "rows.data", "--datasets.0.ds_type", "json")
    assert len(prepared(*other).data.train) == len(ROWS)


def test_test_datasets():
    held_out = ("--test_datasets.0.path", "parts/b.jsonl", "--test_datasets.0.type", "alpaca")
    run = prepared(*held_out)
    assert (len(run.data.train), len(run.data.evaluation)) == (8, 3)


def test_dataset_prepared_path(folder):
    prepared("--dataset_prepared_path", "elsewhere")
    assert list((folder / "elsewhere").iterdir())


def test_field_of_raw_text():
    raw = ("--datasets.0.type", "completion")
    assert first_text(*raw, "--datasets.0.field", "rules").startswith("Be brief")


PROMPT_CASES = [
    ("datasets.0.type.system_prompt", "Be kind.", "Be kind."),
    ("datasets.0.type.system_format", "<<{system}>>", "<<Be kind.>>"),
    ("datasets.0.type.field_system", "rules", "Be brief"),
    ("datasets.0.type.field_instruction", "output", "[river river|now]"),
    ("datasets.0.type.field_input", "rules", "[Say river|Be brief]"),
    ("datasets.0.type.field_output", "rules", "[Say river|now]Be brief"),
    ("datasets.0.type.format", "({instruction})", "(Say river)"),
    ("datasets.0.type.no_input_format", "({instruction})", "(Say river)"),
]


@pytest.mark.parametrize(("key", "value", "expected"), PROMPT_CASES, ids=lambda case: str(case))
def test_a_prompt_of_ones_own(key, value, expected):
    besides = []
    if key.endswith("system_format"):
        besides += ["--datasets.0.type.system_prompt", "Be kind."]
    if key.endswith("no_input_format"):
        besides += ["--datasets.0.type.field_input", "nothing"]
    assert expected not in first_text(*besides, file="own.yaml")
    assert expected in first_text(*besides, f"--{key}", value, file="own.yaml")


# Sequences


def test_pad_to_sequence_len():
    assert max(width for _, width in shapes()) < 256
    assert {width for _, width in shapes("--pad_to_sequence_len", "true")} == {256}


def test_group_by_length():
    def padded(*overrides):
        return sum(rows * width for rows, width in shapes("--datasets.0.weight", "6", *overrides))

    assert padded("--group_by_length", "true") < padded()


def test_eval_sample_packing():
    def held_out(*overrides):
        data = training_data(prepared(*PACKED, *HELD_OUT, *overrides)).evaluation
        starts = [int((batch["position_ids"] == 0).sum()) for batch in map(data.__getitem__, [0])]
        return len(data), starts

    packed, apart = held_out(), held_out("--eval_sample_packing", "false")
    assert packed != apart
    assert packed[0] <= apart[0]


def test_sample_packing_group_size():
    whole = prepared(*PACKED).data.sequences(0)
    single = prepared(*PACKED, "--sample_packing_group_size", "1").data.sequences(0)
    assert len(single) == len(ROWS) > len(whole)


@pytest.mark.parametrize(
    ("key", "value"), [("sample_packing_eff_est", "0.5"), ("total_num_tokens", "7")]
)
def test_estimates_are_compared_with_what_is_counted(key, value, caplog):
    with caplog.at_level("INFO", "newtune"):
        run = prepared(*PACKED, f"--{key}", value)
    facts = run.plan.data_facts
    counted = {"sample_packing_eff_est": facts.packing_efficiency, "total_num_tokens": facts.tokens}
    assert f"`{key}` is given as {value}; counted: {counted[key]:g}" in caplog.text


# Adapters


def test_lora_target_linear():
    run = prepared("--lora_target_modules", "[q_proj]", "--lora_target_linear", "false")
    assert run.plan.adapter.target_modules == ("q_proj",)
    assert len(prepared().plan.adapter.target_modules) == 7


def test_lora_target_parameters():
    parameters = ("--lora_target_parameters", "[mlp.experts.gate_up_proj]")
    run = prepared(
        *("--base_model", "experts", "--lora_dropout", "0", "--lora_target_linear", ""), *parameters
    )
    model = load_model(run.plan.model, run.plan.adapter, tokenizer=tiny_tokenizer())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("experts" in name for name in trained)
    assert model.get_nb_trainable_parameters()[0] == run.plan.trainable_parameters


def test_lora_model_dir(folder):
    """The adapter's own rank and targets are the run's, in the plan and in the model."""
    first = prepared(
        "--lora_r", "3", "--lora_target_linear", "", "--lora_target_modules", "[q_proj]"
    )
    model = load_model(first.plan.model, first.plan.adapter, tokenizer=tiny_tokenizer())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)

    config = load_config(
        "run.yaml", ("--lora_model_dir", "adapter", "--lora_target_linear", "", "--lora_r", "5")
    )
    assert any(n.startswith("`lora_r` has no effect in this run") for n in config.notices)
    again = prepare(config)
    assert (again.plan.adapter.rank, again.plan.adapter.target_modules) == (3, ("q_proj",))
    assert again.plan.trainable_parameters == first.plan.trainable_parameters
    loaded = load_model(again.plan.model, again.plan.adapter, tokenizer=tiny_tokenizer())
    assert loaded.get_nb_trainable_parameters()[0] == again.plan.trainable_parameters
    tokens = torch.arange(8).reshape(1, 8)
    torch.testing.assert_close(loaded.eval()(tokens).logits, model.eval()(tokens).logits)
    assert config.unread_keys() == []
    shutil.rmtree(folder / "adapter")
    with pytest.raises(ModelError, match="adapter"):
        model_side(config, World.current())


# Taking up a run


def test_resuming(folder):
    keys = ("--output_dir", "resumed", "--max_steps", "2", "--save_steps", "1")
    train(load_config("run.yaml", keys))
    for how in (
        ("--auto_resume_from_checkpoints", "true"),
        ("--resume_from_checkpoint", "resumed/checkpoint-1"),
    ):
        with pytest.raises(NewtuneError, match="--resume"):
            train(load_config("run.yaml", keys))
        shutil.rmtree(folder / "resumed" / "checkpoint-2")
        train(load_config("run.yaml", (*keys, *how)))
        assert (folder / "resumed" / "checkpoint-2").is_dir()
        lines = (folder / "resumed" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines if '"loss"' in line] == [1, 2]
