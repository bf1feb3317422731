"""Given keys that have no effect in this run: each is answered with a notice.

A row names keys (or patterns of them), and what has to hold for them to act.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from newtune.config.patterns import matches
from newtune.config.rules import has_held_out_data
from newtune.config.run import RunConfig, asks_for_something


@dataclass(frozen=True)
class Idle:
    """Keys that act only under a condition."""

    keys: tuple[str, ...]
    acts: Callable[[RunConfig], Any]
    because: str
    """Why they have no effect otherwise."""


def never(_: RunConfig) -> bool:
    """Say that keys cannot act: what they refine is refused, or not done so."""
    return False


IDLE: tuple[Idle, ...] = (
    Idle(
        ("lora_*", "peft_*", "peft.*", "loraplus_*", "merge_method", "merged_dtype"),
        lambda config: config.adapter.adapter,
        "there is no `adapter`",
    ),
    Idle(
        (
            *("lora_r", "lora_alpha", "lora_dropout", "lora_target_*", "lora_modules_to_save"),
            *("lora_fan_in_fan_out", "peft_use_*", "peft_init_lora_weights", "peft_layers_*"),
            *("peft_trainable_token_indices", "peft_ensure_weight_tying"),
        ),
        lambda config: not config.adapter.lora_model_dir,
        "the adapter of `lora_model_dir` brings its own",
    ),
    Idle(
        ("bnb_config_kwargs",),
        lambda config: (
            config.adapter.adapter == "qlora"
            or config.quantization.load_in_4bit
            or config.quantization.load_in_8bit
        ),
        "the base is not quantised by bitsandbytes",
    ),
    Idle(
        ("relora", "relora_*"),
        lambda config: config.relora_every,
        "ReLoRA is off: there is no `adapter`, or `relora` is false",
    ),
    Idle(
        ("relora_prune_ratio",),
        lambda config: config.adapter.relora_prune_method != "reset",
        "`relora_prune_method: reset` drops the whole state",
    ),
    Idle(
        ("jagged_restart_warmup_steps", "jagged_restart_anneal_steps"),
        lambda config: config.training.jagged_restart_steps,
        "`jagged_restart_steps` is not given",
    ),
    Idle(
        ("loraplus_lr_embedding",),
        lambda config: config.adapter.loraplus_lr_ratio,
        "`loraplus_lr_ratio` is not given",
    ),
    Idle(
        (
            "eval_*",
            "evals_per_epoch",
            "metric_for_best_model",
            "greater_is_better",
            "early_stopping_threshold",
        ),
        has_held_out_data,
        "there is no held-out data (`val_set_size` or `test_datasets`)",
    ),
    Idle(
        ("eval_max_new_tokens", "eval_generate_samples"),
        lambda config: config.evaluation.eval_generate,
        "`eval_generate` is off",
    ),
    Idle(
        ("early_stopping_threshold",),
        lambda config: config.evaluation.early_stopping_patience,
        "`early_stopping_patience` is not given",
    ),
    Idle(
        ("sample_packing_*", "total_num_tokens"),
        lambda config: config.sequence.sample_packing,
        "`sample_packing` is off",
    ),
    Idle(
        ("group_by_length",),
        lambda config: not config.sequence.sample_packing,
        "packs are all of the same length",
    ),
    Idle(
        ("batch_flattening",),
        lambda config: not config.sequence.sample_packing,
        "packs are joined already",
    ),
    Idle(
        ("gradient_checkpointing_kwargs",),
        lambda config: config.compute.gradient_checkpointing,
        "`gradient_checkpointing` is off",
    ),
    Idle(
        (
            *("scaling_softmax_*", "tiled_mlp_*", "pose_*", "eaft_*"),
            *("bench_*", "eval_causal_lm_metrics", "num_generation_samples", "generation_*"),
            *("otel_metrics_*", "model_quantization_config_kwargs"),
        ),
        never,
        "the key that switches it on is not given",
    ),
    Idle(
        ("ray_*", "resources_per_worker"),
        lambda config: config.parallel.use_ray,
        "`use_ray` is not given",
    ),
    Idle(
        ("*datasets.*.trust_remote_code",),
        never,
        "the hub's datasets run no code any more",
    ),
    Idle(
        ("streaming_multipack_buffer_size", "datasets.*.skip"),
        lambda config: config.is_streamed,
        "the data is not streamed (`streaming`, `pretraining_dataset`)",
    ),
    Idle(
        ("pretraining_sample_concatenation", "pretrain_multipack_attn"),
        lambda config: config.data.pretraining_dataset,
        "there is no `pretraining_dataset`",
    ),
    Idle(
        ("pretrain_multipack_attn",),
        lambda config: (
            config.sequence.sample_packing or config.sequence.pretraining_sample_concatenation
        ),
        "no sequence holds several documents",
    ),
    Idle(
        ("sample_packing_eff_est", "total_num_tokens"),
        lambda config: not config.is_streamed,
        "nothing of a stream is counted before the run",
    ),
    Idle(
        ("dataset_num_proc",),
        lambda config: not config.is_streamed or config.data.test_datasets,
        "a stream is not prepared",
    ),
    Idle(
        ("lr_quadratic_warmup",),
        lambda config: config.training.warmup_steps != 0 and config.training.warmup_ratio != 0,
        "there is no warm-up",
    ),
    Idle(
        ("loss_watchdog_patience",),
        lambda config: config.training.loss_watchdog_threshold,
        "`loss_watchdog_threshold` is not given",
    ),
    Idle(
        ("num_epochs",),
        lambda config: config.training.max_steps is None,
        "`max_steps` goes before it",
    ),
    Idle(
        ("dataloader_prefetch_factor",),
        lambda config: config.data.dataloader_num_workers,
        "`dataloader_num_workers` is not given",
    ),
    Idle(
        ("heads_k_stride",),
        never,
        "it is for ring attention; here parts of a sequence are exchanged for heads (Ulysses)",
    ),
    Idle(
        ("ring_attn_func",),
        lambda config: (config.parallel.context_parallel_size or 1) > 1,
        "sequences are not shared between processes",
    ),
    Idle(
        ("hub_strategy", "hub_revision", "hub_always_push"),
        lambda config: config.output.hub_model_id,
        "`hub_model_id` is not given",
    ),
    Idle(
        ("hub_always_push",),
        lambda config: config.output.hub_strategy not in (None, "end"),
        "the result is uploaded once, at the end (`hub_strategy`)",
    ),
    Idle(
        ("hub_strategy", "hub_always_push"),
        lambda config: config.output.save_strategy != "no",
        "`save_strategy: no` writes no checkpoints; the result is uploaded at the end",
    ),
    Idle(
        ("hub_private_repo",),
        lambda config: config.output.hub_model_id or config.data.push_dataset_to_hub,
        "neither `hub_model_id` nor `push_dataset_to_hub` is given",
    ),
    Idle(
        ("save_total_limit", "save_only_model"),
        lambda config: config.output.save_strategy != "no",
        "`save_strategy: no` writes no checkpoints",
    ),
    Idle(
        ("wandb_*",),
        lambda config: _tracker_is_on(config, "use_wandb", "wandb_project"),
        "wandb is off: `wandb_project` is not given, or `use_wandb` is false",
    ),
    Idle(
        ("mlflow_*", "hf_mlflow_log_artifacts"),
        lambda config: _tracker_is_on(config, "use_mlflow", "mlflow_experiment_name"),
        "mlflow is off: `mlflow_experiment_name` is not given, or `use_mlflow` is false",
    ),
    Idle(
        ("comet_*",),
        lambda config: _tracker_is_on(config, "use_comet", "comet_project_name"),
        "comet is off: `comet_project_name` is not given, or `use_comet` is false",
    ),
    Idle(
        ("trackio_*",),
        lambda config: _tracker_is_on(config, "use_trackio", "trackio_project_name"),
        "trackio is off: `trackio_project_name` is not given, or `use_trackio` is false",
    ),
)


def idle_keys(config: RunConfig) -> dict[str, str]:
    """Return a notice for each given key that has no effect in this run, by dotted key."""
    notices: dict[str, str] = {}
    for key in _given_keys(config):
        for idle in IDLE:
            named = any(matches(key, pattern) for pattern in idle.keys)
            if named and not idle.acts(config):
                notices.setdefault(key, f"`{key}` has no effect in this run: {idle.because}.")
    return notices


def _given_keys(config: RunConfig) -> Iterator[str]:
    """Yield the dotted keys that were given a value other than the default or "off"."""
    for _, section in config.sections():
        owners = [("", section), *((f"{path}.", nested) for path, nested in section.nested())]
        for prefix, owner in owners:
            for key in owner.key_names():
                if key in owner.given() and asks_for_something(owner, key):
                    yield f"{prefix}{key}"


def _tracker_is_on(config: RunConfig, switch: str, project: str) -> bool:
    asked = getattr(config.tracking, switch)
    return bool(getattr(config.tracking, project)) if asked is None else asked
