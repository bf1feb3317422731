"""Every key that acts changes what a run does: the plan, the tokens, or the tokenizer.

What the plan's values then do is tested where they are used (`tests/unit/training` and so on);
the keys of conversations are tested in `tests/unit/data`.
"""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from newtune.config.load import load_config
from newtune.distributed.world import World
from newtune.errors import DataError
from newtune.plan.plan import plan_as_dict
from newtune.prepare import prepare
from tiny import save_tiny_checkpoint

ROWS = [
    {"instruction": f"Say {word}", "input": "", "output": f"{word} {word}"}
    for word in ("river", "bridge " * 6, "city", "paris", "week", "story", "model", "river")
]
BASE = """
base_model: {model}
datasets:
  - path: {data}
    type: alpaca
val_set_size: 2
sequence_len: 160
adapter: lora
lora_target_linear: true
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 0.001
output_dir: {out}
dataset_prepared_path: {cache}
bf16: false
"""
TWO_DATASETS = (
    *("--datasets.1.path", "rows.jsonl", "--datasets.1.type", "alpaca"),
    *("--datasets.0.weight", "3", "--datasets.1.weight", "1"),
    *("--datasets.0.split", "train[:4]"),
)
PLAIN_ADAMW = ("--optimizer", "adamw_torch")
BY_SIZE = ("--dataset_mixing.by", "rows", "--dataset_mixing.temperature", "1")
TEST_DATASET = (
    *("--test_datasets.0.path", "rows.jsonl", "--test_datasets.0.type", "alpaca"),
    *("--val_set_size", "0"),
)
CASES = [
    # (key, its value, what both sides of the comparison have besides)
    ("overrides_of_model_config", "{rms_norm_eps: 0.1}", ()),
    ("overrides_of_model_kwargs", "{low_cpu_mem_usage: true}", ()),
    ("base_model_ignore_patterns", "['*.bin']", ()),
    ("revision_of_model", "main", ()),
    ("model_type", "LlamaForCausalLM", ()),
    ("trust_remote_code", "true", ()),
    ("unfrozen_parameters", "['lm_head.*']", ("--adapter", "")),
    ("resize_token_embeddings_to_32x", "true", ()),
    ("special_tokens.pad_token", "<unk>", ()),
    ("special_tokens.eos_token", "<|im_end|>", ()),
    ("special_tokens.bos_token", "<|im_start|>", ()),
    ("special_tokens.unk_token", "<s>", ()),
    ("special_tokens.additional_special_tokens", "['<tool>']", ()),
    ("tokens", "['<new>']", ()),
    ("bf16", "true", ()),
    ("bfloat16", "true", ()),
    ("float32", "true", ("--bf16", "")),
    ("attn_implementation", "eager", ()),
    ("gradient_checkpointing", "true", ()),
    (
        "gradient_checkpointing_kwargs",
        "{use_reentrant: false}",
        ("--gradient_checkpointing", "true"),
    ),
    ("load_in_4bit", "true", ()),
    ("load_in_8bit", "true", ()),
    ("adapter", "qlora", ()),
    ("bnb_config_kwargs", "{bnb_4bit_quant_type: fp4}", ("--load_in_4bit", "true")),
    ("val_set_size", "3", ()),
    ("dataset_exact_deduplication", "true", ()),
    ("dataset_shard_num", "2", ()),
    ("dataset_shard_idx", "1", ("--dataset_shard_num", "2")),
    ("shuffle_merged_datasets", "false", ()),
    ("shuffle_before_merging_datasets", "true", ("--shuffle_merged_datasets", "false")),
    ("train_on_inputs", "true", ()),
    ("datasets.0.train_on_inputs", "true", ()),
    ("datasets.0.split", "train[:4]", ()),
    ("datasets.0.shards", "2", ()),
    ("datasets.0.shards_idx", "1", ("--datasets.0.shards", "2")),
    ("datasets.0.type", "alpaca:chat", ()),
    ("dataloader_num_workers", "1", ()),
    ("dataloader_prefetch_factor", "3", ("--dataloader_num_workers", "1")),
    ("sequence_len", "100", ()),
    ("excess_length_strategy", "truncate", ("--sequence_len", "100")),
    ("min_sample_len", "70", ()),
    ("sample_packing", "true", ()),
    ("sample_packing_bin_size", "1", ("--sample_packing", "true", "--sequence_len", "512")),
    ("batch_flattening", "true", ()),
    ("num_dataset_shards_to_save", "2", ()),
    ("datasets.0.preprocess_shards", "2", ()),
    ("datasets.0.weight", "2", ()),
    ("dataset_mixing.by", "tokens", TWO_DATASETS),
    ("dataset_mixing.exhaust", "first", (*TWO_DATASETS, "--dataset_mixing.by", "rows")),
    (
        "dataset_mixing.temperature",
        "9",
        (*TWO_DATASETS[:4], *TWO_DATASETS[8:], *BY_SIZE),
    ),
    ("eval_sequence_len", "100", TEST_DATASET),
    ("pad_to_multiple_of", "8", ()),
    ("curriculum_sampling", "true", ()),
    ("sample_packing_sequentially", "true", ("--sample_packing", "true")),
    ("adapter", "", ()),
    ("lora_r", "3", ()),
    ("lora_on_cpu", "true", ()),
    ("lora_alpha", "5", ()),
    ("lora_dropout", "0.5", ()),
    ("lora_target_modules", "[lm_head]", ()),
    ("peft_layers_to_transform", "[0]", ()),
    ("peft_layers_pattern", "layers", ("--peft_layers_to_transform", "[0]")),
    ("lora_modules_to_save", "[embed_tokens]", ()),
    ("lora_fan_in_fan_out", "true", ()),
    ("peft_use_dora", "true", ()),
    ("peft_use_rslora", "true", ()),
    ("peft_init_lora_weights", "gaussian", ()),
    ("peft_trainable_token_indices", "[5]", ()),
    ("peft_ensure_weight_tying", "true", ()),
    ("peft.loftq_config.loftq_bits", "4", ("--adapter", "qlora")),
    ("relora", "true", ("--jagged_restart_steps", "4", *PLAIN_ADAMW)),
    ("relora_steps", "4", PLAIN_ADAMW),
    ("relora_warmup_steps", "2", ("--relora_steps", "4", *PLAIN_ADAMW)),
    ("relora_anneal_steps", "2", ("--relora_steps", "4", *PLAIN_ADAMW)),
    ("relora_prune_ratio", "0.5", ("--relora_steps", "4", *PLAIN_ADAMW)),
    ("relora_prune_method", "reset", ("--relora_steps", "4", *PLAIN_ADAMW)),
    ("jagged_restart_steps", "4", ()),
    ("jagged_restart_warmup_steps", "2", ("--jagged_restart_steps", "4")),
    ("jagged_restart_anneal_steps", "2", ("--jagged_restart_steps", "4")),
    ("loraplus_lr_ratio", "16", ()),
    ("loraplus_lr_embedding", "0.1", ("--loraplus_lr_ratio", "16")),
    ("micro_batch_size", "2", ()),
    ("gradient_accumulation_steps", "2", ()),
    ("batch_size", "4", ("--gradient_accumulation_steps", "")),
    ("num_epochs", "2.5", ()),
    ("max_steps", "3", ()),
    ("learning_rate", "0.01", ()),
    ("embedding_lr", "0.01", ()),
    ("optimizer", "sgd", ()),
    ("optim_args", "{momentum: 0.5}", ("--optimizer", "sgd")),
    ("weight_decay", "0.5", ()),
    ("adam_beta1", "0.5", ()),
    ("adam_beta2", "0.5", ()),
    ("adam_epsilon", "0.5", ()),
    ("max_grad_norm", "0.5", ()),
    ("lr_scheduler", "linear", ()),
    ("lr_scheduler_kwargs", "{num_cycles: 2}", ()),
    ("cosine_min_lr_ratio", "0.1", ()),
    ("cosine_constant_lr_ratio", "0.8", ("--cosine_min_lr_ratio", "0.1")),
    ("lr_quadratic_warmup", "true", ()),
    ("warmup_steps", "2", ()),
    ("warmup_ratio", "0.5", ()),
    ("logging_steps", "7", ()),
    ("seed", "7", ()),
    ("neftune_noise_alpha", "5", ()),
    ("loss_watchdog_threshold", "5", ()),
    ("loss_watchdog_patience", "7", ("--loss_watchdog_threshold", "5")),
    ("eval_batch_size", "2", ()),
    ("eval_steps", "2", ()),
    ("evals_per_epoch", "2", ()),
    ("eval_strategy", "no", ()),
    ("eval_on_start", "true", ()),
    ("eval_generate", "true", ()),
    ("eval_max_new_tokens", "5", ("--eval_generate", "true")),
    ("eval_generate_samples", "1", ("--eval_generate", "true")),
    ("load_best_model_at_end", "true", ()),
    ("metric_for_best_model", "eval_perplexity", ("--load_best_model_at_end", "true")),
    ("greater_is_better", "true", ("--load_best_model_at_end", "true")),
    ("early_stopping_patience", "2", ()),
    ("early_stopping_threshold", "0.5", ("--early_stopping_patience", "2")),
    ("save_steps", "2", ()),
    ("saves_per_epoch", "2", ()),
    ("save_strategy", "no", ()),
    ("save_total_limit", "1", ()),
    ("save_first_step", "true", ()),
    ("save_only_model", "true", ()),
    ("merged_dtype", "float16", ()),
    ("output_dir", "elsewhere", ()),
    ("hub_model_id", "me/model", ()),
    ("hub_strategy", "every_save", ("--hub_model_id", "me/model")),
    (
        "hub_always_push",
        "true",
        ("--hub_model_id", "me/model", "--hub_strategy", "checkpoint"),
    ),
    ("push_dataset_to_hub", "me/rows", ()),
    ("hub_private_repo", "true", ("--hub_model_id", "me/model")),
    ("hub_revision", "v1", ("--hub_model_id", "me/model")),
    ("use_tensorboard", "true", ()),
]

CHAT_ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Say {word}"},
            {
                "role": "assistant",
                "content": f"<think>{word}?</think>{word}!",
                "why": "Asked.",
                "reasoning_content": "So.",
                "train": number % 2 == 0,
                "detail": [{"begin_offset": 0, "end_offset": number, "train": True}],
            },
        ],
        "talk": [
            {"who": "user", "says": "Say it", "role": "assistant", "content": "It"},
            {"who": "assistant", "says": "It", "role": "user", "content": "Say it"},
        ],
        "tools": [{"name": "speak"}],
        "functions": [{"name": "sing"}],
        "system": "Be kind.",
        "rules": "Be brief.",
    }
    for number, word in enumerate(("river", "bridge", "city", "paris", "week", "story"))
]
CHAT_TEMPLATE = (
    "{{ tools }}{{ mood }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}"
    "{% if m.thought %}({{ m.thought }}){% endif %}"
    "{{ m.content + '<|im_end|></s>~~\\n' }}{% endfor %}"
)
CHAT = (
    *("--datasets.0.path", "chat.jsonl", "--datasets.0.type", "chat_template"),
    *("--datasets.0.chat_template_jinja", "chat.jinja"),
)
SPLIT = (
    *CHAT,
    *("--datasets.0.field_thinking", "none"),
    *("--datasets.0.template_thinking_key", "thought"),
)
PLAIN = (
    *CHAT[:4],
    *("--datasets.0.field_tools", "none"),
    *("--datasets.0.field_thinking", "none"),
)
NO_SYSTEM = (*CHAT, "--datasets.0.field_system", "none")
CHAT_CASES = [
    ("chat_template", "zephyr", PLAIN),
    ("datasets.0.chat_template", "zephyr", PLAIN),
    ("chat_template_jinja", "chat.jinja", PLAIN),
    ("datasets.0.chat_template_jinja", "chat.jinja", PLAIN),
    ("chat_template_kwargs", "{mood: calm}", CHAT),
    ("default_system_message", "Help.", NO_SYSTEM),
    ("eot_tokens", "['~~']", CHAT),
    ("datasets.0.eot_tokens", "['~~']", CHAT),
    ("datasets.0.field_messages", "talk", CHAT),
    ("datasets.0.field_system", "rules", CHAT),
    ("datasets.0.field_tools", "functions", CHAT),
    ("datasets.0.field_thinking", "why", CHAT),
    ("datasets.0.template_thinking_key", "thought", CHAT),
    (
        "datasets.0.message_property_mappings",
        "{role: who, content: says}",
        (*CHAT, "--datasets.0.field_messages", "talk"),
    ),
    ("datasets.0.message_field_training", "train", CHAT),
    ("datasets.0.message_field_training_detail", "detail", CHAT),
    ("datasets.0.roles", "{user: [assistant], assistant: [user]}", CHAT),
    ("datasets.0.roles_to_train", "[user]", CHAT),
    ("datasets.0.train_on_eos", "none", CHAT),
    ("datasets.0.train_on_eot", "all", (*CHAT, "--datasets.0.eot_tokens", "['~~']")),
    ("datasets.0.drop_system_message", "true", CHAT),
    ("datasets.0.split_thinking", "true", SPLIT),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    save_tiny_checkpoint(folder / "model")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, CHAT_ROWS)))
    (folder / "chat.jinja").write_text(CHAT_TEMPLATE)
    (folder / "run.yaml").write_text(
        BASE.format(
            model=folder / "model",
            data=folder / "rows.jsonl",
            out=folder / "out",
            cache=folder / "cache",
        )
    )
    return folder


@cache
def outcome(folder: Path, overrides: tuple[str, ...]) -> tuple[object, list[str]]:
    """Return everything that is decided before weights load, and the keys nothing read."""
    config = load_config(folder / "run.yaml", overrides)
    world = replace(World.alone(), bf16_is_fast=True)  # the same on every machine
    prepared = prepare(config, world)
    plan = plan_as_dict(prepared.plan)
    plan.pop("reasons")
    plan.pop("notices")
    digest = hashlib.sha256()
    stores = [prepared.data.train, *filter(None, [prepared.data.evaluation])]
    for store in stores:
        for example in store:
            digest.update(example.input_ids.tobytes() + example.labels.tobytes())
    tokenizer = prepared.tokenizer
    tokens = (len(tokenizer), sorted(tokenizer.special_tokens_map.items()))
    packing = prepared.data.packing
    order = [str(sequence) for sequence in prepared.data.sequences(1)]
    files = [len(store.files) for store in stores]
    return (
        json.dumps(plan, default=str),
        digest.hexdigest(),
        str(tokens),
        packing,
        order,
        files,
    ), (config.unread_keys())


@pytest.mark.parametrize(
    ("key", "value", "besides"),
    [pytest.param(*case, id=case[0]) for case in (*CASES, *CHAT_CASES)],
)
def test_the_key_changes_the_run(folder, key, value, besides):
    without, _ = outcome(folder, besides)
    with_it, unread = outcome(folder, (*besides, f"--{key}", value))
    assert key not in unread
    assert with_it != without


def test_on_error_drops_what_would_stop_the_run(folder):
    (folder / "broken.jsonl").write_text((folder / "rows.jsonl").read_text() + '\n{"instruction')
    path = ("--datasets.0.path", str(folder / "broken.jsonl"))
    with pytest.raises(DataError, match="line 9: malformed JSON"):
        outcome(folder, path)
    dropped, unread = outcome(folder, (*path, "--datasets.0.on_error", "drop"))
    whole, _ = outcome(folder, ())
    assert unread == []
    assert dropped[1] == whole[1]
