"""The sections together: each key once, reads, dumps."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import VALID, valid
from newtune.config.keys import all_keys
from newtune.config.legacy import OldDatasetSpellings, OldSpellings
from newtune.config.load import config_from
from newtune.config.run import SECTIONS
from newtune.config.section import Section

LORA = {"adapter": "lora", "lora_target_linear": True}


def sections() -> list[type[Section]]:
    found: list[type[Section]] = [*SECTIONS.values(), OldSpellings, OldDatasetSpellings]
    for cls in found:
        found += [below for below in cls.sections_below().values() if below not in found]
    return found


def test_each_key_lives_in_exactly_one_section() -> None:
    owners: list[type[Section]] = [*SECTIONS.values(), OldSpellings]
    counted = Counter(key for cls in owners for key in cls.key_names())
    assert [key for key, count in counted.items() if count > 1] == []


@pytest.mark.parametrize("cls", sections(), ids=lambda cls: cls.__name__)
def test_every_key_is_documented(cls: type[Section]) -> None:
    for key in cls.key_names():
        doc = cls.docs().get(key, "")
        assert doc.endswith((".", "...")), f"{cls.__name__}.{key}: {doc!r}"


def test_a_key_that_nothing_reads_is_found() -> None:
    config = valid(**LORA, lora_r=16)
    assert "lora_r" in config.unread_keys()
    assert config.adapter.lora_r == 16
    assert "lora_r" not in config.unread_keys()


def test_nested_keys_count_too() -> None:
    config = valid(datasets=[{"path": "a", "shards": 2, "type": {"format": "x"}}])
    assert {"datasets.0.path", "datasets.0.shards", "datasets.0.type.format"} <= set(
        config.unread_keys()
    )
    (entry,) = config.data.datasets
    assert entry.shards == 2
    assert "datasets.0.shards" not in config.unread_keys()


def test_the_rules_and_a_dump_are_no_readers() -> None:
    config = valid(**LORA, lora_r=16)
    config.dump()
    assert "lora_r" in config.unread_keys()
    assert "base_model" in config.unread_keys()


@pytest.mark.parametrize(
    "harmless",
    [
        {**LORA, "lora_r": 8},  # the default
        {"sample_packing": False},
        {"special_tokens": None},
        {"wandb_project": ""},
        {"deepspeed": False},
        {"strict": True},  # has acted while loading
        {"low_cpu_mem_usage": True},  # a notice answers it
        {"lora_r": 16},  # no adapter: a notice answers it
    ],
    ids=str,
)
def test_what_need_not_be_read(harmless: dict[str, Any]) -> None:
    given_otherwise = {"adapter", "lora_target_linear"}
    unread = set(valid(**harmless).unread_keys()) - given_otherwise
    assert unread == set(valid().unread_keys())


def test_switching_off_what_is_on_must_be_read() -> None:
    assert "shuffle_merged_datasets" in valid(shuffle_merged_datasets=False).unread_keys()


RICH: dict[str, Any] = {
    **VALID,
    **LORA,
    "datasets": [
        {"path": "a", "type": {"format": "{instruction}", "no_input_format": ""}},
        {"path": "b", "type": "chat_template", "roles": {"user": ["human"]}},
    ],
    "val_set_size": 0.1,
    "special_tokens": {"pad_token": "<pad>"},
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "lora_target_modules": ["q_proj"],
    "eval_steps": 0.25,
    "bf16": "auto",
}


def test_a_dump_loads_to_an_equal_config() -> None:
    config = config_from(RICH)
    again = config_from(config.dump())
    assert again.dump() == config.dump()
    assert again.data == config.data
    assert again.training == config.training


def test_a_key_that_is_secret_is_not_saved() -> None:
    config = valid(comet_project_name="x", comet_api_key="secret")
    assert config.tracking.comet_api_key == "secret"
    assert "comet_api_key" not in config.dump()
    assert "secret" not in repr(config)


ACTING = [
    name
    for name, info in all_keys().items()
    if info.status == "acts" and "." not in name and info.takes == "true or false"
]


@given(st.dictionaries(st.sampled_from(ACTING), st.booleans(), max_size=4))
def test_dumps_of_any_switches_are_stable(switches: dict[str, bool]) -> None:
    from newtune.errors import ConfigError

    try:
        config = config_from({**VALID, **switches})
    except ConfigError:
        return
    assert config_from(config.dump()).dump() == config.dump()
