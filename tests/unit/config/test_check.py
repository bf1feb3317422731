"""Unknown keys and wrong types, in words that help."""

import pytest

from configs import hints, problems, valid
from newtune.config.load import config_from
from newtune.config.yaml_file import EMPTY
from newtune.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "path", "hint"),
    [
        ({"lora_rr": 8}, "lora_rr", "Did you mean `lora_r`?"),
        ({"flash_atention": True}, "flash_atention", "Did you mean `flash_attention`?"),
        ({"datasets": [{"path": "a", "typ": "b"}]}, "datasets.0.typ", "Did you mean `type`?"),
        (
            {"special_tokens": {"pad_tokn": "x"}},
            "special_tokens.pad_tokn",
            "Did you mean `pad_token`?",
        ),
        (
            {"fsdp_config": {"fsdp_ofload_params": True}},
            "fsdp_config.fsdp_ofload_params",
            "Did you mean `offload_params`?",
        ),
        ({"zzzzzz": 1}, "zzzzzz", ""),
        ({"shards": 2}, "shards", "`shards` belongs to the dataset entry."),
        ({"pad_token": "x"}, "pad_token", "`pad_token` belongs to `special_tokens:`."),
        ({"loftq_bits": 4}, "loftq_bits", "`loftq_bits` belongs to `peft.loftq_config:`."),
        (
            {"datasets": [{"path": "a", "lora_r": 1}]},
            "datasets.0.lora_r",
            "`lora_r` belongs to the top level of the file.",
        ),
        (
            {"datasets": [{"path": "a", "type": {"field": "text"}}]},
            "datasets.0.type.field",
            "`field` belongs to the dataset entry.",
        ),
        (
            {"datasets": [{"path": "a", "no_input_format": "x"}]},
            "datasets.0.no_input_format",
            "`no_input_format` belongs to the dataset's `type:` mapping.",
        ),
    ],
)
def test_unknown_keys(changes: dict[str, object], path: str, hint: str) -> None:
    assert f"{path}: unknown key" in problems(**changes)
    assert hint in hints(**changes)


def test_an_empty_key_in_the_wrong_place_is_a_notice() -> None:
    config = valid(datasets=[{"path": "a", "type": {"format": "{instruction}", "field": EMPTY}}])
    assert config.notices == (
        "`datasets.0.type.field` is empty and was left out; `field` belongs to the dataset entry.",
    )


def test_an_empty_key_that_does_not_exist_is_an_error() -> None:
    assert problems(lora_rr=EMPTY) == ["lora_rr: unknown key"]


@pytest.mark.parametrize(
    ("changes", "problem", "hint"),
    [
        (
            {"lora_r": "8"},
            "lora_r: got `8` (text); expected a whole number above 0",
            "Leave the quotes out.",
        ),
        ({"lora_r": 0}, "lora_r: got `0` (a number); expected a whole number above 0", ""),
        (
            {"lora_dropout": 1},
            "lora_dropout: got `1` (a number); expected a number at least 0 and below 1",
            "",
        ),
        (
            {"sample_packing": "no"},
            "sample_packing: got `no` (text); expected true or false",
            "In YAML 1.2 `no` is text; write `false`.",
        ),
        (
            {"wandb_name": 7},
            "wandb_name: got `7` (a number); expected text",
            "Put it in quotes: '7'.",
        ),
        (
            {"save_strategy": "epochs"},
            "save_strategy: got `epochs` (text); expected `no`, `steps`, `epoch` or `best`",
            "Did you mean `epoch`?",
        ),
        (
            {"tokens": "<x>"},
            "tokens: got `<x>` (text); expected a list of texts",
            "A list is written `[<x>]`.",
        ),
        (
            {"datasets": {"path": "a"}},
            "datasets: got `{'path': 'a'}` (a mapping); expected a list of mappings",
            "A list entry begins with `- `.",
        ),
        (
            {"datasets": [{"path": 3}]},
            "datasets.0.path: got `3` (a number); expected text",
            "Put it in quotes: '3'.",
        ),
        (
            {"datasets": [{"path": "a", "type": {"format": 3}}]},
            "datasets.0.type.format: got `3` (a number); expected text",
            "Put it in quotes: '3'.",
        ),
        (
            {"datasets": [{"path": "a", "roles": {"user": "human"}}]},
            "datasets.0.roles.user: got `human` (text); expected a mapping to a list of texts",
            "A list is written `[human]`.",
        ),
        (
            {"eval_steps": 1.5, "val_set_size": 0.1},
            "eval_steps: got `1.5` (a number); "
            "expected a whole number above 0, or a number above 0 and below 1",
            "",
        ),
    ],
)
def test_wrong_types(changes: dict[str, object], problem: str, hint: str) -> None:
    assert problems(**changes) == [problem]
    assert hints(**changes) == [hint]


@pytest.mark.parametrize(
    "off",
    [
        {"deepspeed": False},
        {"fsdp": EMPTY},
        {"fsdp": []},
        {"fsdp_config": {}},
        {"special_tokens": EMPTY},
        {"special_tokens": {"pad_token": EMPTY}},
        {"wandb_project": ""},
        {"wandb_watch": False},
        {"adapter": EMPTY},
        {"adapter": ""},
        {"load_in_8bit": False},
        {"early_stopping_patience": EMPTY},
        {"xformers_attention": EMPTY},
        {"peft": {"loftq_config": {"loftq_bits": EMPTY}}},
        {"overrides_of_model_config": {"rope_scaling": {"type": EMPTY, "factor": EMPTY}}},
    ],
    ids=str,
)
def test_off_forms_pass_without_a_word(off: dict[str, object]) -> None:
    config = valid(**off)
    assert config.notices == ()
    assert config.unread_keys() == valid().unread_keys()


def test_an_explicit_null_stays_inside_free_mappings() -> None:
    config = valid(overrides_of_model_config={"sliding_window": None, "rope_scaling": EMPTY})
    assert config.model.overrides_of_model_config == {"sliding_window": None}


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from({"lora_rr": 1, "seed": "x", "warmup_steps": 1, "warmup_ratio": 0.1})
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {"lora_rr", "seed", "warmup_ratio", "base_model", "datasets", "learning_rate"}


def test_a_wrong_key_breaks_no_rule_as_well() -> None:
    assert problems(micro_batch_size="x") == [
        "micro_batch_size: got `x` (text); expected a whole number above 0"
    ]
