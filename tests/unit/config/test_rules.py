"""Each rule refuses what it says, and only that."""

from typing import Any

import pytest

from configs import changed, hints, problems, valid
from newtune.config.choices import REFUSED_OPTIMIZERS, REFUSED_SCHEDULES
from newtune.config.load import config_from
from newtune.config.rules import RULES
from newtune.errors import ConfigError

HELD_OUT = {"val_set_size": 0.1}
LORA = {"adapter": "lora", "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora"}
RELORA = {**LORA, "relora_steps": 10, "optimizer": "adamw_torch"}
EXPERTS = {"adapter": "lora", "lora_target_parameters": ["mlp.experts.down_proj"]}
EXPERTS |= {"lora_dropout": 0}
LOFTQ = {"peft": {"loftq_config": {"loftq_bits": 4}}}
STREAM = {"streaming": True, "max_steps": 5}
TEXT = {"pretraining_dataset": [{"path": "a"}], "datasets": None, "max_steps": 5}


def rows(which: str) -> dict[str, Any]:
    return {"unfrozen_parameters": [f"^model.embed_tokens.weight${which}"]}


def rope(**scaling: Any) -> dict[str, Any]:
    return {"overrides_of_model_config": {"rope_scaling": scaling}}


LISTS = {"short_factor": [1.0, 2.0], "long_factor": [1, 4]}
TUNED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def data(**entry: Any) -> list[dict[str, Any]]:
    return [{"path": "a", "type": "alpaca", **entry}]


# rule → (changes that break it, changes close by that do not); None = refused for another reason
CASES: dict[str, list[tuple[dict[str, Any], dict[str, Any] | None]]] = {
    "base_model_is_needed": [({"base_model": None}, {})],
    "one_family": [
        (
            {"is_llama_derived_model": True, "is_mistral_derived_model": True},
            {"is_llama_derived_model": True, "is_mistral_derived_model": False},
        )
    ],
    "unfrozen_without_adapter": [
        ({"unfrozen_parameters": ["x"], **LORA}, {"unfrozen_parameters": ["x"]})
    ],
    "ranges_of_rows_hold_rows": [
        (rows("[9:9]"), rows("[8:9]")),
        (rows("[9:3]"), rows("[:3]")),
        (rows("[5:0]"), rows("[5:]")),
    ],
    "rows_are_kept_where_they_are_whole": [
        ({**rows("[:9]"), "deepspeed": "zero2.json"}, {**rows(""), "deepspeed": "zero2.json"}),
        ({**rows("[:9]"), "fsdp_config": {"offload_params": True}}, None),
        ({**rows("[:9]"), "tensor_parallel_size": 2}, {**rows("[:9]"), "tensor_parallel_size": 1}),
        ({**rows("[:9]"), "dp_shard_size": 2}, {**rows("[:9]"), "dp_replicate_size": 2}),
        (
            {**rows("[:9]"), "optimizer": "schedule_free_adamw"},
            {**rows(""), "optimizer": "schedule_free_adamw"},
        ),
    ],
    "scaling_is_whole": [
        (rope(type="yarm", factor=2.0), rope(type="yarn", factor=2)),
        (rope(typ="linear", factor=2.0), rope(rope_type="linear", factor=2.0)),
        (rope(type="linear", rope_type="yarn", factor=2.0), rope(factor=2.0)),
        (rope(type="linear", beta_fast=1, factor=2.0), rope(type="yarn", beta_fast=1, factor=2.0)),
        (rope(type="dynamic"), rope(type="dynamic", factor=2.0)),
        (rope(type="dynamic", factor="two"), rope(type="dynamic", factor=2.0, rope_theta=5.0)),
        (rope(type="linear", factor=0.5), rope(type="linear", factor=1)),
        (rope(type="llama3", factor=8.0), rope(type="llama3", factor=8.0, **TUNED)),
        (rope(type="llama3", factor=8.0, low_freq_factor=4, high_freq_factor=1), None),
        (rope(type="longrope", long_factor=[1.0]), rope(type="longrope", **LISTS)),
        (rope(type="longrope", short_factor=2.0, long_factor=[2.0]), None),
        (rope(full_attention={"type": "yarm"}), rope(full_attention={"type": "yarn", "factor": 2})),
        ({"overrides_of_model_config": {"rope_scaling": "linear"}}, None),
        (
            {"overrides_of_model_config": {"rope_scaling": {"factor": 2.0}, "rope_parameters": {}}},
            None,
        ),
        ({"rope_scaling": {"type": "yarm", "factor": 2.0}}, {"rope_scaling": {"factor": 2.0}}),
    ],
    "one_width": [({"load_in_8bit": True, "load_in_4bit": True, **LORA}, None)],
    "gptq_is_quantised_already": [({"gptq": True, "load_in_8bit": True, **LORA}, None)],
    "qlora_is_4_bit": [
        ({**LORA, "adapter": "qlora", "load_in_8bit": True}, None),
        ({**LORA, "adapter": "qlora", "gptq": True}, None),
        ({**LORA, "adapter": "qlora", "load_in_4bit": False}, None),
    ],
    "quantised_base_needs_adapter": [
        ({"load_in_4bit": True}, None),
        ({"load_in_8bit": True}, None),
        ({"gptq": True}, None),
    ],
    "bitsandbytes_knows_its_options": [
        (
            {**LORA, "load_in_4bit": True, "bnb_config_kwargs": {"bnb_4bit_quant_typ": "nf4"}},
            None,
        ),
        ({**LORA, "load_in_4bit": True, "bnb_config_kwargs": {"load_in_8bit": True}}, None),
    ],
    "quantised_base_keeps_its_weights": [
        ({**LORA, "adapter": "qlora", "peft_init_lora_weights": "olora"}, None),
    ],
    "known_strategy": [({"device_map": "balenced"}, {"device_map": "balanced"})],
    "one_memory_limit": [({"max_memory": {0: "20GiB"}, "gpu_memory_limit": 20}, None)],
    "sizes_are_sizes": [
        ({"gpu_memory_limit": "a lot"}, None),
        ({"max_memory": {0: "20 apples"}}, None),
    ],
    "placement_is_for_one_process": [
        ({"device_map": "balanced", "deepspeed": "zero3.json"}, None),
        ({"max_memory": {0: 20}, "fsdp_config": {"offload_params": True}}, None),
        ({**LORA, "lora_on_cpu": True, "fsdp_config": {"offload_params": True}}, None),
    ],
    "one_precision": [
        ({"bf16": True, "fp16": True}, {"bf16": True, "fp16": False}),
        ({"bf16": "auto", "float16": True}, {"float16": True}),
        ({"bfloat16": True, "bf16": True}, {"bfloat16": True, "tf32": True}),
    ],
    "known_attention": [
        ({"attn_implementation": "spda"}, {"attn_implementation": "sdpa"}),
        ({"attn_implementation": "flash"}, None),
        ({"attn_implementation": "owner/kernel"}, {"attn_implementation": "sdpa"}),
    ],
    "data_is_needed": [({"datasets": None}, {})],
    "every_dataset_has_a_path": [
        ({"datasets": [{"type": "alpaca"}]}, {}),
        ({"test_datasets": [{"type": "alpaca"}]}, {"test_datasets": data()}),
    ],
    "shard_exists": [
        ({"datasets": data(shards_idx=0)}, {"datasets": data(shards_idx=0, shards=1)}),
        ({"datasets": data(shards_idx=4, shards=4)}, {"datasets": data(shards_idx=3, shards=4)}),
        ({"test_datasets": data(shards_idx=0)}, {"datasets": data(shards=4)}),
    ],
    "merged_shard_exists": [
        ({"dataset_shard_idx": 0}, {"dataset_shard_idx": 0, "dataset_shard_num": 2}),
        ({"dataset_shard_idx": 2, "dataset_shard_num": 2}, {"dataset_shard_num": 2}),
    ],
    "prompt_placeholders": [
        (
            {"datasets": data(type={"format": "{question}"})},
            {"datasets": data(type={"format": "{instruction} {input}"})},
        ),
        (
            {"datasets": data(type={"no_input_format": "{input}"})},
            {"datasets": data(type={"no_input_format": "{instruction}"})},
        ),
        (
            {"datasets": data(type={"system_format": "{sys}"})},
            {"datasets": data(type={"system_format": "<{system}>"})},
        ),
        (
            {"datasets": data(type={"format": "{instruction"})},
            {"datasets": data(type={"format": "{{instruction}}"})},
        ),
    ],
    "jinja_template_is_there": [
        ({"chat_template": "jinja"}, {"chat_template": "jinja", "chat_template_jinja": "x"}),
        ({"chat_template": "chatml", "chat_template_jinja": "x"}, {"chat_template_jinja": "x"}),
        ({"datasets": data(chat_template="jinja")}, {"datasets": data(chat_template="chatml")}),
    ],
    "format_exists": [
        ({"datasets": data(type="alpca")}, {"datasets": data(type="my.rows:read")}),
        ({"datasets": data(type="user_defined")}, {"datasets": data(type="completion:body")}),
        ({"datasets": data(), "test_datasets": data(type="chatml.intel")}, None),
    ],
    "template_exists": [
        ({"chat_template": "chat_ml"}, {"chat_template": "chatml"}),
        (
            {"datasets": data(chat_template="tokenizer_default_fallback_x")},
            {"datasets": data(chat_template="tokenizer_default_fallback_chatml")},
        ),
        ({"chat_template": "llava"}, {"chat_template": "tokenizer_default"}),
    ],
    "held_out_part": [
        ({"val_set_size": 1}, {"val_set_size": 2}),
        ({"val_set_size": 1.0}, {"val_set_size": 0.99}),
        ({"val_set_size": 1.5}, {"val_set_size": 0.0}),
    ],
    "one_source_of_held_out_data": [
        ({**HELD_OUT, "test_datasets": data()}, {"val_set_size": 0, "test_datasets": data()})
    ],
    "streams_need_an_end": [
        ({"streaming": True}, {"streaming": True, "max_steps": 5}),
        ({**TEXT, "max_steps": None}, TEXT),
    ],
    "pretraining_data_is_streamed": [
        ({**TEXT, "streaming": False}, {**TEXT, "streaming": True}),
    ],
    "nothing_is_held_out_of_a_stream": [
        ({**TEXT, **HELD_OUT}, {**TEXT, "test_datasets": data()}),
        ({**STREAM, **HELD_OUT}, HELD_OUT),
    ],
    "whole_data_is_never_there": [
        ({**STREAM, "dataset_exact_deduplication": True}, {"dataset_exact_deduplication": True}),
        ({**STREAM, "dataset_shard_num": 2}, {"dataset_shard_num": 2}),
        (
            {**TEXT, "shuffle_before_merging_datasets": True},
            {**TEXT, "shuffle_merged_datasets": True},
        ),
    ],
    "a_stream_is_read_by_one_thread": [
        ({**STREAM, "dataloader_num_workers": 2}, {**STREAM, "dataloader_num_workers": 0}),
        ({**TEXT, "dataloader_num_workers": 1}, {"dataloader_num_workers": 1}),
    ],
    "a_text_column_is_of_raw_text": [
        (
            {**STREAM, "datasets": data(text_column="body")},
            {**STREAM, "datasets": data(text_column="body", type="completion")},
        ),
        (
            {**TEXT, "pretraining_dataset": data(text_column="body")},
            {**TEXT, "pretraining_dataset": data(text_column="body", type=None)},
        ),
        ({"datasets": data(text_column="body", type=None)}, {"datasets": data(type=None)}),
    ],
    "streams_are_mixed_by_tokens": [
        ({**TEXT, "dataset_mixing": {"by": "rows"}}, {**TEXT, "dataset_mixing": {"by": "tokens"}}),
        ({**TEXT, "dataset_mixing": {"by": "tokens", "exhaust": "all"}}, TEXT),
    ],
    "only_text_is_joined": [
        (
            {**TEXT, "pretraining_sample_concatenation": True, "datasets": data()},
            {**TEXT, "pretraining_sample_concatenation": True},
        ),
        (
            {
                "pretraining_dataset": data(type="alpaca"),
                "datasets": None,
                "max_steps": 5,
                "sample_packing": True,
                "pretrain_multipack_attn": False,
            },
            {**TEXT, "sample_packing": True, "pretrain_multipack_attn": False},
        ),
    ],
    "kept_order_is_not_shuffled": [
        (
            {"curriculum_sampling": True, "shuffle_before_merging_datasets": True},
            {"curriculum_sampling": True, "shuffle_merged_datasets": False},
        ),
        ({"curriculum_sampling": True, "group_by_length": True}, {"group_by_length": True}),
    ],
    "split_off_data_has_the_training_length": [
        (
            {**HELD_OUT, "eval_sequence_len": 100},
            {"test_datasets": data(), "eval_sequence_len": 100},
        )
    ],
    "held_out_data_is_not_mixed": [
        ({"test_datasets": data(weight=2)}, {"datasets": data(weight=2), "test_datasets": data()})
    ],
    "shares_come_from_weights_or_sizes": [
        (
            {"datasets": data() + data(weight=2), "dataset_mixing": {"by": "rows"}},
            {"datasets": data(weight=1) + data(weight=2), "dataset_mixing": {"by": "rows"}},
        ),
        (
            {"datasets": data(weight=2), "dataset_mixing": {"by": "tokens", "temperature": 2}},
            {"datasets": data(), "dataset_mixing": {"by": "tokens", "temperature": 2}},
        ),
    ],
    "repeats_need_no_shares": [
        ({"dataset_mixing": {"exhaust": "all"}}, {"dataset_mixing": {"by": "repeats"}}),
        (
            {"dataset_mixing": {"temperature": 2}},
            {"dataset_mixing": {"by": "rows", "temperature": 2}},
        ),
    ],
    "one_way_to_join": [
        (
            {"sample_packing": True, "batch_flattening": True},
            {"sample_packing": True, "batch_flattening": "auto"},
        )
    ],
    "flattened_rows_have_no_padding": [
        (
            {"batch_flattening": True, "pad_to_sequence_len": True},
            {"batch_flattening": False, "pad_to_sequence_len": True},
        )
    ],
    "lengths_leave_room": [
        ({"min_sample_len": 513}, {"min_sample_len": 512}),
    ],
    "adapter_has_targets": [
        ({"adapter": "lora"}, {"adapter": "lora", "lora_target_modules": ["q_proj"]}),
        (
            {"adapter": "lora"},
            {"adapter": "lora", "lora_target_parameters": ["experts"], "lora_dropout": 0},
        ),
        ({"adapter": "lora"}, {"adapter": "lora", "lora_model_dir": "x"}),
    ],
    "pattern_needs_layers": [
        (
            {**LORA, "peft_layers_pattern": "layers"},
            {**LORA, "peft_layers_pattern": "layers", "peft_layers_to_transform": [0]},
        )
    ],
    "known_start": [
        ({**LORA, "peft_init_lora_weights": "pisa"}, {**LORA, "peft_init_lora_weights": "pissa"}),
        (
            {**LORA, "peft_init_lora_weights": "loftq"},
            {**LORA, "peft_init_lora_weights": "pissa_niter_16"},
        ),
        ({**LORA, "peft_init_lora_weights": "corda"}, {**LORA, "peft_init_lora_weights": True}),
    ],
    "orthogonal_needs_an_even_rank": [
        (
            {**LORA, "peft_init_lora_weights": "orthogonal", "lora_r": 3},
            {**LORA, "peft_init_lora_weights": "orthogonal", "lora_r": 4},
        )
    ],
    "eva_needs_data_at_hand": [
        (
            {**LORA, "peft_init_lora_weights": "eva", "streaming": True, "max_steps": 5},
            {**LORA, "peft_init_lora_weights": "eva"},
        )
    ],
    "loftq_needs_a_quantised_base": [
        ({**LORA, **LOFTQ}, {**QLORA, **LOFTQ}),
        ({**LORA, "load_in_8bit": True, **LOFTQ}, {**LORA, "load_in_4bit": True, **LOFTQ}),
        (
            {**QLORA, "peft": {"loftq_config": {"loftq_bits": 4, "loftq_iter": 2}}},
            {**QLORA, "peft": {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}},
        ),
        ({**QLORA, "peft": {"loftq_config": {"loftq_iter": 1}}}, None),
        ({**QLORA, **LOFTQ, "peft_init_lora_weights": "gaussian"}, None),
        ({**QLORA, **LOFTQ, "peft_use_dora": True}, {**QLORA, **LOFTQ, "peft_use_rslora": True}),
    ],
    "relora_needs_an_interval": [
        ({**LORA, "relora": True}, {**LORA, "relora": True, "jagged_restart_steps": 5}),
        ({**RELORA, "jagged_restart_steps": 5}, {**RELORA, "relora": True}),
    ],
    "relora_starts_low_rank_matrices_anew": [
        ({**RELORA, "peft_use_dora": True}, {**RELORA, "peft_use_rslora": True}),
        ({**RELORA, "lora_modules_to_save": ["lm_head"]}, {**RELORA}),
        ({**RELORA, "lora_model_dir": "./before"}, None),
        (
            {**RELORA, "peft_init_lora_weights": "pissa"},
            {**RELORA, "peft_init_lora_weights": "gaussian"},
        ),
    ],
    "relora_knows_the_state": [
        ({**RELORA, "optimizer": "muon"}, {**RELORA, "optimizer": "adamw_bnb_8bit"}),
        (
            {**RELORA, "optimizer": "adamw_bnb_8bit", "relora_prune_method": "random"},
            {**RELORA, "optimizer": "adamw_bnb_8bit", "relora_prune_method": "reset"},
        ),
    ],
    "restarts_leave_room": [
        (
            {**RELORA, "relora_warmup_steps": 6, "relora_anneal_steps": 5},
            {**RELORA, "relora_warmup_steps": 5, "relora_anneal_steps": 5},
        ),
        (
            {"jagged_restart_steps": 4, "jagged_restart_warmup_steps": 5},
            {"jagged_restart_steps": 4, "jagged_restart_warmup_steps": 4},
        ),
    ],
    "bare_parameters_take_plain_lora": [
        ({**EXPERTS, "lora_dropout": 0.05}, EXPERTS),
        (
            {**EXPERTS, "peft_init_lora_weights": "pissa"},
            {**EXPERTS, "peft_init_lora_weights": "gaussian"},
        ),
        ({**EXPERTS, "peft_use_dora": True}, {**EXPERTS, "peft_use_rslora": True}),
    ],
    "lora_plus_needs_groups": [
        (
            {**LORA, "loraplus_lr_ratio": 16, "optimizer": "galore_adamw"},
            {**LORA, "loraplus_lr_ratio": 16, "optimizer": "muon"},
        )
    ],
    "one_rate_of_embeddings": [
        (
            {**LORA, "loraplus_lr_ratio": 16, "embedding_lr": 0.1},
            {**LORA, "loraplus_lr_ratio": 16, "loraplus_lr_embedding": 0.1},
        )
    ],
    "learning_rate_is_needed": [({"learning_rate": None}, {})],
    "two_batch_numbers": [
        ({"micro_batch_size": None}, {"micro_batch_size": None, "batch_size": 8}),
        (
            {"gradient_accumulation_steps": None, "micro_batch_size": None, "batch_size": 8},
            {"gradient_accumulation_steps": None},
        ),
    ],
    "batch_divides": [
        ({"batch_size": 9}, {"batch_size": 16}),
        ({"batch_size": 9, "micro_batch_size": None}, {"batch_size": 8, "micro_batch_size": None}),
    ],
    "one_warmup": [
        ({"warmup_steps": 10, "warmup_ratio": 0.1}, {"warmup_steps": 10}),
        ({"warmup_steps": 0, "warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 10, "warmup_ratio": 0}, {"warmup_ratio": 0}),
    ],
    "known_optimizer": [({"optimizer": "adamw_torhc"}, {"optimizer": "adafactor"})],
    "known_schedule": [({"lr_scheduler": "cosin"}, {"lr_scheduler": "constant"})],
    "floor_needs_a_schedule_that_falls": [
        (
            {"cosine_min_lr_ratio": 0.1, "lr_scheduler": "constant"},
            {"cosine_min_lr_ratio": 0.1, "lr_scheduler": "linear"},
        )
    ],
    "constant_part_is_of_a_cosine": [
        (
            {
                "cosine_constant_lr_ratio": 0.5,
                "cosine_min_lr_ratio": 0.1,
                "lr_scheduler": "linear",
            },
            {"cosine_constant_lr_ratio": 0.5, "cosine_min_lr_ratio": 0.1},
        )
    ],
    "constant_part_needs_a_floor": [
        (
            {"cosine_constant_lr_ratio": 0.8},
            {"cosine_constant_lr_ratio": 0.8, "cosine_min_lr_ratio": 0.0},
        )
    ],
    "one_eval_cadence": [
        ({**HELD_OUT, "eval_steps": 5, "evals_per_epoch": 2}, {**HELD_OUT, "eval_steps": 5})
    ],
    "eval_strategy_agrees": [
        (
            {**HELD_OUT, "eval_strategy": "steps"},
            {**HELD_OUT, "eval_strategy": "steps", "eval_steps": 5},
        ),
        ({**HELD_OUT, "eval_strategy": "no", "eval_steps": 5}, {**HELD_OUT, "eval_strategy": "no"}),
        (
            {**HELD_OUT, "eval_strategy": "epoch", "eval_steps": 5},
            {**HELD_OUT, "eval_strategy": "epoch"},
        ),
        (
            {**HELD_OUT, "eval_strategy": "no", "evals_per_epoch": 2},
            {**HELD_OUT, "evals_per_epoch": 2},
        ),
    ],
    "one_save_cadence": [({"save_steps": 5, "saves_per_epoch": 2}, {"save_steps": 0.5})],
    "save_strategy_agrees": [
        ({"save_strategy": "steps"}, {"save_strategy": "steps", "save_steps": 5}),
        ({"save_strategy": "no", "saves_per_epoch": 1}, {"save_strategy": "no"}),
        (
            {**HELD_OUT, "save_strategy": "best", "save_steps": 1},
            {**HELD_OUT, "save_strategy": "best"},
        ),
    ],
    "some_checkpoint_is_kept": [({"save_total_limit": 0}, {"save_total_limit": 1})],
    "best_needs_evaluation": [
        ({"early_stopping_patience": 3}, {"early_stopping_patience": 3, **HELD_OUT}),
        ({"load_best_model_at_end": True}, {"load_best_model_at_end": True, **HELD_OUT}),
        ({"save_strategy": "best"}, {"save_strategy": "best", "test_datasets": data()}),
        ({"eval_generate": True}, {"eval_generate": True, "eval_strategy": "no", **HELD_OUT}),
        ({"early_stopping_patience": 3, "eval_strategy": "no", **HELD_OUT}, {}),
    ],
    "best_needs_checkpoints": [
        (
            {**HELD_OUT, "load_best_model_at_end": True, "save_strategy": "no"},
            {**HELD_OUT, "load_best_model_at_end": True},
        )
    ],
    "one_sharding_engine": [
        ({"deepspeed": "x.json", "fsdp_config": {"offload_params": True}}, None),
        ({"deepspeed": "x.json", "fsdp": ["full_shard"]}, None),
    ],
    "deepspeed_lays_out_the_processes": [
        ({"deepspeed": "deepspeed_configs/zero3.json", "dp_replicate_size": 2}, None),
        ({"deepspeed": "deepspeed_configs/zero3.json", "dp_shard_size": 2}, None),
        ({"deepspeed": "deepspeed_configs/zero3.json", "context_parallel_size": 2}, None),
    ],
    "sequences_are_shared_by_heads": [
        ({"context_parallel_size": 2, "ring_attn_func": "batch_zigzag"}, None),
    ],
    "parts_are_not_uploaded": [
        (
            {
                "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"},
                "hub_model_id": "me/model",
                "hub_strategy": "every_save",
            },
            None,
        )
    ],
    "resources_are_amounts": [
        ({"resources_per_worker": {"CPU": 0}}, None),
        ({"resources_per_worker": {"GPU": "one"}}, None),
    ],
    "size_of_wrapped_pieces": [({"fsdp_config": {"auto_wrap_policy": "SIZE_BASED_WRAP"}}, None)],
}

PAIRS = [(rule, *case) for rule, cases in CASES.items() for case in cases]


def own_problems(rule: str, values: dict[str, Any]) -> list[str]:
    """Return what one rule says about values that may break others too."""
    from newtune.config.check import build
    from newtune.config.legacy import translate
    from newtune.config.run import SECTION_OF, SECTIONS, RunConfig

    translate(values, frozenset())
    sections = {
        name: build(cls, {key: value for key, value in values.items() if SECTION_OF[key] == name})[
            0
        ]
        for name, cls in SECTIONS.items()
    }
    config = RunConfig(**sections)  # type: ignore[arg-type]
    check = next(item.check for item in RULES if item.check.__name__ == rule)
    return [problem.message for problem in check(config)]


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == {rule.check.__name__ for rule in RULES}


@pytest.mark.parametrize(("rule", "breaks", "passes"), PAIRS)
def test_a_broken_rule_is_reported(
    rule: str, breaks: dict[str, Any], passes: dict[str, Any] | None
) -> None:
    assert own_problems(rule, changed(breaks))
    with pytest.raises(ConfigError):
        config_from(changed(breaks))
    if passes is not None:
        assert own_problems(rule, changed(passes)) == []
        config_from(changed(passes))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.check.__name__)
def test_rules_say_what_they_are_in_a_sentence_and_name_real_keys(rule: Any) -> None:
    from newtune.config.run import SECTION_OF

    assert rule.says.endswith(".")
    assert set(rule.keys) <= set(SECTION_OF)


def test_a_rule_about_wrong_keys_is_silent() -> None:
    assert problems(warmup_steps="x", warmup_ratio=0.1) == [
        "warmup_steps: got `x` (text); expected a whole number at least 0"
    ]


def test_a_held_out_number_of_rows_may_be_written_as_a_float() -> None:
    assert valid(val_set_size=100.0).data.val_set_size == 100.0


def test_an_unknown_format_or_template_is_answered_with_the_nearest():
    (problem,) = problems(datasets=data(type="alpaca_cht"))
    assert problem == "datasets.0.type: no format `alpaca_cht`"
    (hint,) = hints(datasets=data(type="alpaca_cht"))
    assert hint.startswith("Did you mean `alpaca_chat`? Known: `alpaca`, `alpaca_chat`,")
    assert hint.endswith("`package.module:function`, or a mapping (a prompt of your own).")
    assert "needs `rl`" in problems(datasets=data(type="chatml.intel"))[0]
    (problem,) = problems(chat_template="qwen_2.5")
    assert problem == "chat_template: no chat template `qwen_2.5`"
    assert hints(chat_template="qwen_2.5")[0].startswith("Did you mean `qwen_25`? Known: `alpaca`")
    assert "use the tokenizer's own" in problems(chat_template="falcon_h1")[0]
    assert "images" in problems(datasets=data(chat_template="qwen2_vl"))[0]


@pytest.mark.parametrize("name", REFUSED_OPTIMIZERS)
def test_optimizers_that_cannot_be_used_are_refused_with_the_reason(name: str) -> None:
    assert problems(optimizer=name) == [
        f"optimizer: `{name}` is not supported: {REFUSED_OPTIMIZERS[name]}"
    ]


@pytest.mark.parametrize("name", REFUSED_SCHEDULES)
def test_schedules_that_cannot_be_used_are_refused_with_the_reason(name: str) -> None:
    (problem,) = problems(lr_scheduler=name)
    assert problem.startswith(f"lr_scheduler: `{name}` is not supported: it follows")
