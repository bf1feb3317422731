"""DeepSpeed's own configuration: where its JSON lies, and what is wrong with its keys."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from newtune.errors import ConfigError, Problem
from newtune.lookup import did_you_mean

SHIPPED_FOLDER = "deepspeed_configs"
SHIPPED = Path(__file__).parents[1] / SHIPPED_FOLDER

PASSED_ON = (
    *("zero_optimization", "fp16", "bf16", "torch_autocast", "data_types", "aio"),
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("gradient_clipping", "optimizer", "scheduler", "zero_allow_untested_optimizer"),
    *("zero_force_ds_cpu_optimizer", "communication_data_type", "prescale_gradients"),
    *("gradient_predivide_factor", "steps_per_print", "wall_clock_breakdown", "dump_state"),
    *("memory_breakdown", "disable_allgather", "disable_python_gc", "log_level", "timers"),
    *("comms_logger", "flops_profiler"),
)
"""Keys at the top that act: filled and compared by newtune, or DeepSpeed's own affair."""

NOT_HERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("tensorboard", "wandb", "comet", "csv_monitor", "monitor_config"),
        "newtune reports the run itself: see `use_tensorboard`, `use_wandb`, `use_comet`",
    ),
    **dict.fromkeys(
        ("data_efficiency", "curriculum_learning", "dataloader_drop_last", "data_sampling"),
        "the order of the data is newtune's",
    ),
    **dict.fromkeys(
        ("checkpoint", "nebula", "datastates_ckpt", "load_universal_checkpoint"),
        "checkpoints are newtune's, whole and independent of the engine",
    ),
    "activation_checkpointing": "newtune recomputes layers itself: `gradient_checkpointing: true`",
    "managed_gradient_accumulation": "newtune says where a step ends",
    "gradient_allreduce_op": "newtune divides once, by the trained tokens of the whole step",
    "tensor_parallel": "see `tensor_parallel_size`",
    "amp": "NVIDIA's apex is not available: see `bf16`",
    **dict.fromkeys(
        (
            *("autotuning", "compression_training", "elasticity", "hybrid_engine", "pipeline"),
            *("sparse_attention", "sparse_gradients", "progressive_layer_drop", "eigenvalue"),
            *("quantize_training", "weight_quantization", "expert_parallel", "compile"),
            *("zenflow", "seq_parallel_communication_data_type", "vocabulary_size"),
            *("use_data_before_expert_parallelism",),
        ),
        "this part of DeepSpeed is not available with newtune",
    ),
}
"""Keys of DeepSpeed that would do what newtune does, or that newtune was never run with."""

ZERO_KEYS = (
    *("stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size"),
    *("use_multi_rank_bucket_allreduce", "allgather_partitions", "allgather_bucket_size"),
    *("overlap_comm", "compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint"),
    *("offload_param", "offload_optimizer", "zenflow", "sub_group_size", "cpu_offload_param"),
    *("cpu_offload_use_pin_memory", "cpu_offload", "stage3_prefetch_bucket_size"),
    *("stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_gather_16bit_weights_on_model_save", "stage3_module_granularity_threshold"),
    *("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    *("stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters", "legacy_stage1"),
    *("round_robin_gradients", "parameter_alignment", "zero_hpz_partition_size"),
    *("zero_quantized_weights", "zero_quantized_nontrainable_weights"),
    *("zero_quantized_gradients", "memory_efficient_linear", "pipeline_loading_checkpoint"),
    *("override_module_apply", "log_trace_cache_warnings", "enable_sanity_checks"),
    *("save_muon_momentum_buffer_in_memory", "leaf_module"),
)
OFFLOAD_PARAM_KEYS = (
    *("device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory"),
)
OFFLOAD_OPTIMIZER_KEYS = (
    *("device", "nvme_path", "buffer_count", "pin_memory", "pipeline_read", "pipeline_write"),
    *("fast_init", "ratio", "super_offload", "cpuadam_cores_perc"),
)
KNOWN: Mapping[str, tuple[str, ...]] = {
    "": (*PASSED_ON, *NOT_HERE),
    "zero_optimization": ZERO_KEYS,
    "zero_optimization.offload_param": OFFLOAD_PARAM_KEYS,
    "zero_optimization.offload_optimizer": OFFLOAD_OPTIMIZER_KEYS,
}
"""Section → its keys in DeepSpeed 0.19. DeepSpeed itself ignores a key that it does not know."""


def read_deepspeed(given: str | Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the mapping itself, or what the JSON file holds.

    A path is looked for in `folder`, the configuration's, then in the working directory, then
    among the files that newtune ships.

    Raises:
        ConfigError: no such file; it is no JSON; keys that are not known, or that newtune does.
    """
    values = _copied(given) if isinstance(given, Mapping) else _read(given, folder)
    problems = list(_wrong_keys(values))
    if problems:
        raise ConfigError(problems)
    return values


def wrong_deepspeed(given: str | Mapping[str, Any] | None, folder: Path) -> list[Problem]:
    """Return what is wrong with what `deepspeed` names, if it names something."""
    try:
        if given:
            read_deepspeed(given, folder)
    except ConfigError as error:
        return list(error.problems)
    return []


def shipped() -> list[str]:
    """Return the names of the files that newtune ships."""
    return sorted(path.name for path in SHIPPED.glob("*.json"))


def _read(name: str, folder: Path) -> dict[str, Any]:
    path = Path(name).expanduser()
    text = next(
        (place.read_text("utf-8") for place in (folder / path, path) if place.is_file()),
        None,
    )
    if text is None:
        text = _shipped_text(path)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError([Problem("deepspeed", f"`{name}` is no JSON: {error}")]) from error
    if not isinstance(values, dict):
        raise ConfigError([Problem("deepspeed", f"`{name}` holds no mapping")])
    return values


def _shipped_text(path: Path) -> str:
    name = path.name.removesuffix(".json") + ".json"
    if str(path.parent) in (".", SHIPPED_FOLDER) and name in shipped():
        return (SHIPPED / name).read_text("utf-8")
    message = (
        f"there is no `{path}` beside the configuration, none in the working directory, and "
        "newtune ships none of that name"
    )
    names = [f"{SHIPPED_FOLDER}/{name}" for name in shipped()]
    hint = did_you_mean(str(path), names) or f"It ships {', '.join(names)}."
    raise ConfigError([Problem("deepspeed", message, hint[0].upper() + hint[1:])])


def _wrong_keys(values: Mapping[str, Any]) -> Iterator[Problem]:
    for section, known in KNOWN.items():
        inner: Any = values
        for part in section.split(".") if section else ():
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        for key in inner if isinstance(inner, Mapping) else ():
            path = ".".join(part for part in ("deepspeed", section, str(key)) if part)
            if key not in known:
                yield Problem(path, "is no key of DeepSpeed", did_you_mean(str(key), known))
            elif not section and key in NOT_HERE and _asks(inner[key]):
                yield Problem(path, f"is not passed on: {NOT_HERE[key]}", "Leave it out.")


def _asks(value: Any) -> bool:
    """Tell whether a section asks for something: one that is switched off does not."""
    if isinstance(value, Mapping) and "enabled" in value:
        return bool(value["enabled"])
    return value not in (None, False, {}, [])


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copied(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list | tuple) else value
