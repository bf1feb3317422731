"""Every key that acts has a test in which setting it changes what happens.

A table of this folder whose name ends in CASES names its keys first in each row; the effect of any
other key is shown by the test that `SHOWN_BY` names. A key that begins to act fails here first.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from newtune.config.keys import all_keys, generic

TESTS = Path(__file__).parents[1]
SETTINGS = "keys/test_settings_act.py"
TRACKERS = "keys/test_trackers_act.py"
SHOWN_BY = {
    "base_model": f"{SETTINGS}::test_base_model",
    "base_model_config": f"{SETTINGS}::test_base_model_config",
    "is_llama_derived_model": f"{SETTINGS}::test_a_family_flag_where_the_type_is_another",
    "is_mistral_derived_model": f"{SETTINGS}::test_the_mistral_flag_where_the_type_is_another",
    "is_falcon_derived_model": f"{SETTINGS}::test_a_family_flag_that_contradicts_the_checkpoint",
    "is_qwen_derived_model": f"{SETTINGS}::test_a_family_flag_that_contradicts_the_checkpoint",
    "tokenizer_config": "unit/model/test_tokenizer.py::test_the_tokenizer_may_come_from_elsewhere",
    "tokenizer_type": f"{SETTINGS}::test_tokenizer_type",
    "tokenizer_legacy": f"{SETTINGS}::test_tokenizer_legacy",
    "fp16": f"{SETTINGS}::test_precision_keys",
    "float16": f"{SETTINGS}::test_precision_keys",
    "tf32": f"{SETTINGS}::test_precision_keys",
    "datasets.*.path": f"{SETTINGS}::test_dataset_path",
    "datasets.*.ds_type": f"{SETTINGS}::test_ds_type",
    "datasets.*.data_files": f"{SETTINGS}::test_data_files",
    "datasets.*.name": "unit/data/test_hub.py::test_",
    "datasets.*.revision": "unit/data/test_hub.py::test_",
    "datasets.*.on_error": "keys/test_every_key_acts.py::test_on_error_drops_what_would_stop",
    "datasets.*.field": f"{SETTINGS}::test_field_of_raw_text",
    "pretraining_dataset": "keys/test_stream_keys.py::test_the_key_changes_the_stream",
    "streaming": "integration/test_stream_runs.py::test_",
    "test_datasets": f"{SETTINGS}::test_test_datasets",
    "dataset_prepared_path": f"{SETTINGS}::test_dataset_prepared_path",
    "dataset_num_proc": "unit/data/test_shards.py::test_worker_processes_give_what_threads_give",
    "dataloader_pin_memory": f"{SETTINGS}::test_dataloader_pin_memory",
    "pad_to_sequence_len": f"{SETTINGS}::test_pad_to_sequence_len",
    "eval_sample_packing": f"{SETTINGS}::test_eval_sample_packing",
    "sample_packing_group_size": f"{SETTINGS}::test_sample_packing_group_size",
    "sample_packing_eff_est": f"{SETTINGS}::test_estimates_are_compared_with_what_is_counted",
    "total_num_tokens": f"{SETTINGS}::test_estimates_are_compared_with_what_is_counted",
    "group_by_length": f"{SETTINGS}::test_group_by_length",
    **dict.fromkeys(("max_memory", "gpu_memory_limit"), "unit/plan/test_placement.py::test_"),
    "device_map": "invariants/test_placement.py::test_",
    "lora_model_dir": f"{SETTINGS}::test_lora_model_dir",
    "peft.loftq_config.loftq_iter": "unit/config/test_rules.py::test_a_broken_rule",
    "lora_target_linear": f"{SETTINGS}::test_lora_target_linear",
    "lora_target_parameters": f"{SETTINGS}::test_lora_target_parameters",
    "resume_from_checkpoint": f"{SETTINGS}::test_resuming",
    "auto_resume_from_checkpoints": f"{SETTINGS}::test_resuming",
    **dict.fromkeys(
        (
            *("ddp", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
            *("ddp_find_unused_parameters", "hang_timeout_seconds"),
        ),
        "unit/plan/test_parallel.py::test_",
    ),
    "gptq": "unit/plan/test_quantization.py::test_what_cannot_be_is_refused",
    "deepspeed": "unit/plan/test_zero.py::test_",
    "fsdp": "unit/plan/test_parallel.py::test_one_process_shards_nothing",
    "fsdp_version": "unit/config/test_legacy.py::test_fsdp_list_becomes_options",
    **dict.fromkeys(
        (
            *("fsdp_config.activation_checkpointing", "fsdp_config.offload_params"),
            *("fsdp_config.cpu_ram_efficient_loading", "fsdp_config.cpu_offload_pin_memory"),
            *("fsdp_config.state_dict_type", "fsdp_config.final_state_dict_type"),
            *("fsdp_config.auto_wrap_policy", "fsdp_config.min_num_params"),
            *("fsdp_config.transformer_layer_cls_to_wrap", "fsdp_config.reshard_after_forward"),
            *("fsdp_config.sharding_strategy", "fsdp_config.mixed_precision_policy"),
            *("fsdp_config.backward_prefetch", "fsdp_config.forward_prefetch"),
            *("fsdp_config.limit_all_gathers", "fsdp_config.use_orig_params"),
            "fsdp_config.sync_module_states",
        ),
        "unit/plan/test_parallel.py::test_",
    ),
    "dp_replicate_size": "unit/plan/test_mesh.py::test_the_axes_follow",
    "context_parallel_size": "unit/plan/test_context.py::test_neighbours_share_sequences",
    **dict.fromkeys(
        ("use_ray", "ray_num_workers", "ray_run_name", "resources_per_worker"),
        "unit/plan/test_ray.py::test_what_ray_is_to_start",
    ),
    "ring_attn_func": "unit/plan/test_context.py::test_a_ring_is_refused",
    "tensor_parallel_size": "unit/plan/test_tensor.py::test_layers_are_split",
    "dp_shard_size": "unit/plan/test_mesh.py::test_the_axes_follow",
    "strict": "unit/config/test_load.py::test_strict_lets_the_command_line_change_only",
    **dict.fromkeys(
        (
            *("wandb_project", "wandb_entity", "wandb_name", "wandb_run_id", "wandb_group"),
            *("wandb_tags", "wandb_mode", "wandb_watch", "wandb_log_model"),
        ),
        f"{TRACKERS}::test_wandb",
    ),
    **dict.fromkeys(
        (
            *("mlflow_tracking_uri", "mlflow_experiment_name", "mlflow_run_name"),
            "hf_mlflow_log_artifacts",
        ),
        f"{TRACKERS}::test_mlflow",
    ),
    **dict.fromkeys(
        (
            *("comet_workspace", "comet_project_name", "comet_experiment_key", "comet_mode"),
            *("comet_online", "comet_experiment_config"),
        ),
        f"{TRACKERS}::test_comet",
    ),
    "comet_api_key": f"{TRACKERS}::test_what_needs_a_server_reaches_its_package",
    "trackio_project_name": f"{TRACKERS}::test_trackio",
    "trackio_run_name": f"{TRACKERS}::test_trackio",
    "trackio_space_id": f"{TRACKERS}::test_what_needs_a_server_reaches_its_package",
    **dict.fromkeys(
        ("use_wandb", "use_mlflow", "use_comet", "use_trackio"),
        f"{TRACKERS}::test_a_switch_turns_a_tracker_on_and_off",
    ),
}
"""Key → the test that shows its effect: a file of `tests/`, and how the test's name begins."""


def acting() -> set[str]:
    """Return the keys that act and hold no other keys: those are shown by what they hold."""
    names = [name for name, info in all_keys().items() if info.status == "acts"]
    holders = {name for name in all_keys() if any(k.startswith(f"{name}.") for k in all_keys())}
    return {name for name in names if name not in holders and f"{name}.*.path" not in all_keys()}


def cases(file: Path) -> Iterator[str]:
    """Yield the first words of the rows of a file's tables that are called CASES."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.List):
            continue
        if not any(isinstance(t, ast.Name) and t.id.endswith("CASES") for t in node.targets):
            continue
        for row in node.value.elts:
            if isinstance(row, ast.Tuple) and isinstance(row.elts[0], ast.Constant):
                yield str(row.elts[0].value)


def test_every_acting_key_has_a_test_of_its_effect() -> None:
    in_tables = {generic(key) for file in Path(__file__).parent.glob("*.py") for key in cases(file)}
    assert acting() - in_tables - SHOWN_BY.keys() == set()


@pytest.mark.parametrize("key", SHOWN_BY)
def test_the_named_test_is_there_and_speaks_of_the_key(key: str) -> None:
    file, _, test = SHOWN_BY[key].partition("::")
    text = (TESTS / file).read_text(encoding="utf-8")
    assert f"def {test}" in text
    last = key.rpartition(".")[2]
    family = last.replace("llama", "{family}").replace("falcon", "{family}")
    family = family.replace("qwen", "{family}")
    spellings = (last, last.removeprefix("lora_"), family, "use_{name}")
    assert any(spelling in text for spelling in spellings)


def test_no_key_is_named_that_does_not_act() -> None:
    assert {key for key in SHOWN_BY if all_keys()[key].status != "acts"} == set()
