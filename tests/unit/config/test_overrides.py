"""Words of the command line → values over the file's."""

from typing import Any

import pytest

from newtune.config.overrides import apply_overrides, parse_overrides
from newtune.config.run import SECTIONS
from newtune.config.yaml_file import EMPTY
from newtune.errors import ConfigError


def parse(*words: str) -> list[tuple[tuple[str | int, ...], Any]]:
    return parse_overrides(words, SECTIONS.values())


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["--learning_rate", "1e-4"], ("learning_rate",), 1e-4),
        (["--learning-rate=1e-4"], ("learning_rate",), 1e-4),
        (["--datasets.0.path", "x"], ("datasets", 0, "path"), "x"),
        (["-deepspeed", "zero3.json"], ("deepspeed",), "zero3.json"),
        (["--bf16"], ("bf16",), True),
        (["--bf16", "false"], ("bf16",), False),
        (
            ["--lora_target_modules", "[q_proj, v_proj]"],
            ("lora_target_modules",),
            ["q_proj", "v_proj"],
        ),
        (["--warmup_ratio="], ("warmup_ratio",), EMPTY),
        (["--eval_steps", "-1"], ("eval_steps",), -1),
        (["--fsdp_config.offload_params", "true"], ("fsdp_config", "offload_params"), True),
        (["--wandb_name", "7"], ("wandb_name",), "7"),
        (["--datasets.0.name", "2024"], ("datasets", 0, "name"), "2024"),
        (["--output_dir", "no: such"], ("output_dir",), "no: such"),
        (
            ["--datasets.0.type.format", "{instruction}: "],
            ("datasets", 0, "type", "format"),
            "{instruction}: ",
        ),
    ],
)
def test_words(words: list[str], path: tuple[str | int, ...], value: object) -> None:
    assert parse(*words) == [(path, value)]


def test_a_mapping_of_values_is_taken_as_it_is() -> None:
    given = parse_overrides({"datasets.0.path": "x", "seed": 1}, ())
    assert given == [(("datasets", 0, "path"), "x"), (("seed",), 1)]


def test_a_stray_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="`5` belongs to no key"):
        parse("--seed", "4", "5")


def test_values_are_written_into_the_file_s() -> None:
    values: dict[str, Any] = {"datasets": [{"path": "a"}], "peft": EMPTY}
    paths: list[tuple[tuple[str | int, ...], Any]] = [
        (("datasets", 0, "path"), "b"),
        (("datasets", 1, "path"), "c"),
        (("peft", "loftq_config", "loftq_bits"), 4),
        (("seed",), 1),
    ]
    assert apply_overrides(values, paths) == []
    assert values == {
        "datasets": [{"path": "b"}, {"path": "c"}],
        "peft": {"loftq_config": {"loftq_bits": 4}},
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("datasets", 2, "path"), "there is no entry 2; the next new one is 1"),
        (("seed", "x"), "`seed` is 1, which has no keys below it"),
        (("datasets", "path"), "`path` is no number of a list entry"),
    ],
)
def test_values_that_cannot_be_written(path: tuple[str | int, ...], said: str) -> None:
    values: dict[str, Any] = {"datasets": [{"path": "a"}], "seed": 1}
    (problem,) = apply_overrides(values, [(path, "x")])
    assert said in problem.message
    assert values == {"datasets": [{"path": "a"}], "seed": 1}
