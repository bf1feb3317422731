"""Refused keys are refused, no-ops and idle keys are answered with a notice."""

from typing import Any

import pytest

from configs import problems, valid
from newtune.config.idle import IDLE
from newtune.config.keys import all_keys
from newtune.config.noop import NO_OPS
from newtune.config.quantization import BNB_DEFAULTS
from newtune.config.run import SECTIONS
from newtune.errors import ConfigError

LORA = {"adapter": "lora", "lora_target_linear": True}
STREAM = {"streaming": True, "max_steps": 5}


def sample(takes: str) -> Any:
    """Return a value that is neither off nor a likely default, for a key described like this."""
    samples: list[tuple[str, Any]] = [
        ("true or false", True),
        ("`dpo`", "dpo"),
        ("`auto`", True),
        ("`1` or `2`", 1),
        ("a list of mappings", [{"path": "x"}]),
        ("a list of texts", ["x"]),
        ("a list of whole numbers", [3]),
        ("a list of numbers", [3.0]),
        ("a list of lists", [[0, 1]]),
        ("a mapping", {"x": 1}),
        ("a whole number", 7),
        ("a number", 0.5),
        ("text", "x"),
    ]
    return next(value for start, value in samples if takes.startswith(start))


REFUSED = {name: info for name, info in all_keys().items() if info.status == "refused"}
NESTED_SAMPLES: dict[str, Any] = {
    "fsdp": ["full_shard"],
    "fsdp_config": {"offload_params": True},
    "trl": {"beta": 0.1},
    "vllm": {"port": 1},
    "peft.loftq_config": {"loftq_bits": 4},
    "max_memory": {0: "20GiB"},
    "lr_groups": [{"name": "x", "modules": ["y"], "lr": 0.1}],
    "device_map": "balanced",
    "added_tokens_overrides": {7: "x"},
}


def changes_for(name: str) -> dict[str, Any]:
    """Return a config that gives the key of this name, with the mappings around it."""
    value = NESTED_SAMPLES.get(name, sample(all_keys()[name].takes))
    for part in reversed(name.split(".")):
        value = [value] if part == "*" else {part: value}
    changes: dict[str, Any] = value
    for entry in changes.get("datasets", ()):
        entry.setdefault("path", "x")
    return changes


def parent(name: str) -> str:
    """Return the outermost refused key around a refused one."""
    parts = name.split(".")
    return next(
        candidate
        for length in range(1, len(parts) + 1)
        if (candidate := ".".join(parts[:length])) in REFUSED
    )


@pytest.mark.parametrize("name", REFUSED)
def test_every_refused_key_is_refused_by_name(name: str) -> None:
    if REFUSED[name].takes.startswith(("`FULL", "`TRANS", "`1`")):
        return  # values of refused sections, which are refused whole
    reason = REFUSED[name].reason
    path = parent(name).replace("*", "0")
    assert f"{path}: known, but {reason}" in problems(**changes_for(name))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dp_shard_size", 1),
        ("tensor_parallel_size", 1),
        ("bnb_config_kwargs", dict(BNB_DEFAULTS)),
        ("loraplus_lr_embedding", 1e-6),
        ("use_ray", False),
        ("adapter", None),
    ],
)
def test_values_that_ask_for_nothing_pass(key: str, value: object) -> None:
    valid(**{key: value})


@pytest.mark.parametrize("key", NO_OPS)
def test_no_ops_are_answered(key: str) -> None:
    info = all_keys()[key]
    config = valid(**{key: sample(info.takes)})
    assert f"`{key}` changes nothing: {NO_OPS[key].notice}." in config.notices
    assert config.unread_keys() == valid().unread_keys()


@pytest.mark.parametrize("key", [key for key, no_op in NO_OPS.items() if no_op.refused])
def test_no_ops_refuse_the_opposite(key: str) -> None:
    assert problems(**{key: False}) == [f"{key}: `false` is refused: {NO_OPS[key].reason}"]


def test_known_plugins_are_answered_and_others_refused_by_name() -> None:
    liger = "axolotl.integrations.liger.LigerPlugin"
    (notice,) = valid(plugins=[liger]).notices
    assert liger in notice
    assert problems(plugins=[liger, "some.Plugin"]) == [
        "plugins.1: newtune has no plugin `some.Plugin`"
    ]


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({"lora_r": 16}, "lora_r"),
        ({"merged_dtype": "float32"}, "merged_dtype"),
        ({"bnb_config_kwargs": dict(BNB_DEFAULTS)}, "bnb_config_kwargs"),
        ({"eval_steps": 5}, "eval_steps"),
        ({"evals_per_epoch": 5}, "evals_per_epoch"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model"),
        ({"eval_max_new_tokens": 5, "val_set_size": 0.1}, "eval_max_new_tokens"),
        ({"early_stopping_threshold": 0.1, "val_set_size": 0.1}, "early_stopping_threshold"),
        ({"sample_packing_bin_size": 5}, "sample_packing_bin_size"),
        ({"total_num_tokens": 5}, "total_num_tokens"),
        ({"group_by_length": True, "sample_packing": True}, "group_by_length"),
        ({"batch_flattening": "auto", "sample_packing": True}, "batch_flattening"),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            "gradient_checkpointing_kwargs",
        ),
        ({"bench_split": "x"}, "bench_split"),
        ({"lr_quadratic_warmup": True, "warmup_steps": 0}, "lr_quadratic_warmup"),
        ({"loss_watchdog_patience": 5}, "loss_watchdog_patience"),
        ({"num_epochs": 4, "max_steps": 5}, "num_epochs"),
        ({"streaming_multipack_buffer_size": 5}, "streaming_multipack_buffer_size"),
        ({"datasets": [{"path": "a", "skip": 5}]}, "datasets.0.skip"),
        ({"pretraining_sample_concatenation": True}, "pretraining_sample_concatenation"),
        ({"pretrain_multipack_attn": False, **STREAM}, "pretrain_multipack_attn"),
        (
            {
                "pretrain_multipack_attn": False,
                "max_steps": 5,
                "pretraining_dataset": "a",
                "datasets": None,
            },
            "pretrain_multipack_attn",
        ),
        ({"dataset_num_proc": 2, **STREAM}, "dataset_num_proc"),
        ({"total_num_tokens": 5, "sample_packing": True, **STREAM}, "total_num_tokens"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor"),
        ({"hub_strategy": "end"}, "hub_strategy"),
        ({"hub_always_push": True, "hub_model_id": "a/b"}, "hub_always_push"),
        (
            {"hub_strategy": "every_save", "hub_model_id": "a/b", "save_strategy": "no"},
            "hub_strategy",
        ),
        ({"hub_private_repo": True}, "hub_private_repo"),
        ({"save_total_limit": 2, "save_strategy": "no"}, "save_total_limit"),
        ({"wandb_name": "x"}, "wandb_name"),
        ({"wandb_project": "x", "use_wandb": False}, "wandb_project"),
        ({"mlflow_tracking_uri": "x"}, "mlflow_tracking_uri"),
        ({"comet_mode": "get"}, "comet_mode"),
        ({"trackio_run_name": "x"}, "trackio_run_name"),
        ({"use_mlflow": False, "hf_mlflow_log_artifacts": True}, "hf_mlflow_log_artifacts"),
    ],
)
def test_keys_without_effect_are_answered(changes: dict[str, Any], idle: str) -> None:
    config = valid(**changes)
    assert any(
        notice.startswith(f"`{idle}` has no effect in this run: ") for notice in config.notices
    )
    assert idle not in config.unread_keys()


@pytest.mark.parametrize(
    "changes",
    [
        {**LORA, "lora_r": 16},
        {"val_set_size": 0.1, "eval_steps": 5},
        {"wandb_project": "x", "wandb_name": "y"},
        {"sample_packing": True, "sample_packing_bin_size": 5},
    ],
)
def test_keys_with_effect_are_not(changes: dict[str, Any]) -> None:
    assert valid(**changes).notices == ()


def test_patterns_of_idle_keys_match_some_key() -> None:
    from newtune.config.patterns import matches

    names = [name for cls in SECTIONS.values() for name in cls.key_names()]
    for idle in IDLE:
        for pattern in idle.keys:
            assert any(matches(name, pattern) for name in [*names, *all_keys()]), pattern


@pytest.mark.parametrize("key", ["hub_token", "hf_token", "token"])
def test_a_token_in_a_file_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        valid(**{key: "hf_secret"})
    (problem,) = caught.value.problems
    assert problem.hint.startswith("A token stands in no file: set HF_TOKEN")
    assert "hf_secret" not in str(problem)
