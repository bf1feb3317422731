"""The configuration blocks of a public Axolotl tutorial, setting by setting."""

from pathlib import Path
from typing import Any

import pytest

from configs import VALID
from newtune.config.check import without_empty
from newtune.config.load import config_from, load_config
from newtune.config.yaml_file import read_document
from newtune.errors import ConfigError, Problem

FOLDER = Path(__file__).parent / "tutorial"
BLOCKS = sorted(FOLDER.glob("*.yaml"))


def problems_in(values: dict[str, Any]) -> tuple[Problem, ...]:
    try:
        config_from(values)
    except ConfigError as error:
        return error.problems
    return ()


def everything() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for block in BLOCKS:
        values |= read_document(block).values
    return values


@pytest.mark.parametrize("block", BLOCKS, ids=lambda path: path.stem)
def test_every_block_has_known_keys_and_right_types(block: Path) -> None:
    try:
        load_config(block)
    except ConfigError as error:
        for problem in error.problems:
            assert problem.message != "unknown key"
            assert "expected" not in problem.message


def test_all_blocks_together_get_the_refusals_they_deserve() -> None:
    refused = sorted(
        (problem.path, problem.message.split(",")[0]) for problem in problems_in(everything())
    )
    assert refused == [
        ("bf16", "excludes `fp16`"),
        ("gptq", "excludes `load_in_8bit`: a GPTQ checkpoint is quantised already"),
        ("lora_mlp_kernel", "known"),
        ("lora_o_kernel", "known"),
        ("lora_qkv_kernel", "known"),
        ("warmup_ratio", "excludes `warmup_steps`"),
    ]


def test_one_of_each_exclusive_set_without_later_keys_is_valid() -> None:
    values = everything()
    for key in ("fp16", "bfloat16", "float16", "warmup_steps", "gptq", "load_in_8bit"):
        del values[key]
    for key in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"):
        del values[key]
    config = config_from(values)
    assert config.data.datasets[0].split == "train"
    assert config.sequence.sequence_len == 2048
    assert config.training.learning_rate == 3e-5
    belongs = "`field` belongs to the dataset entry."
    assert any(notice.endswith(belongs) for notice in config.notices)


def test_a_filled_field_inside_type_is_answered_with_where_it_belongs() -> None:
    values = without_empty(everything())
    values["datasets"][1]["type"]["field"] = "text"
    (problem,) = (item for item in problems_in(values) if item.message == "unknown key")
    assert problem.path == "datasets.1.type.field"
    assert problem.hint == "`field` belongs to the dataset entry."


def test_the_typo_of_the_first_lab() -> None:
    lab = {"fsdp": ["full_shart", "auto_wrap"], "fsdp_config": {"fsdp_limit_all_gathers": True}}
    found = {problem.path: problem.message for problem in problems_in({**VALID, **lab})}
    assert "did you mean `full_shard`?" in found["fsdp.0"]


def test_the_single_dash_of_the_second_lab(tmp_path: Path) -> None:
    file = tmp_path / "zero3_train.yaml"
    file.write_text("base_model: x\n")
    name = "deepspeed_configs/zero3_bf16_cpuoffload_all.json"
    with pytest.raises(ConfigError) as caught:  # it holds no data
        load_config(file, ["-deepspeed", name])
    assert "deepspeed" not in {problem.path for problem in caught.value.problems}
    with pytest.raises(ConfigError, match="there is no `deepspeed_configs/zero4"):
        load_config(file, ["-deepspeed", "deepspeed_configs/zero4.json"])
