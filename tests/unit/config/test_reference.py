"""Every key can be looked up; the schema and the page are complete."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import VALID
from newtune.config.explain import key_lines, problem_lines
from newtune.config.keys import all_keys, find_key
from newtune.config.reference import REQUIRED, json_schema, markdown
from newtune.config.run import SECTION_OF
from newtune.errors import ConfigError, Problem

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_in_the_docs_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        "write it anew: newtune schema --markdown > docs/configuration.md"
    )


def test_the_schema_beside_the_recipes_is_up_to_date() -> None:
    file = PAGE.parents[1] / "recipes" / "newtune.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json_schema(), (
        "write it anew: newtune schema > recipes/newtune.schema.json"
    )


def test_the_schema_is_written_the_same_whatever_the_hash_seed() -> None:
    program = "import json, newtune.config.reference as r; print(json.dumps(r.json_schema()))"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    written = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert written == {(json.dumps(json_schema()) + "\n").encode()}


def test_all_keys_are_on_the_page() -> None:
    page = markdown()
    assert all(f"| `{name}` |" in page for name in all_keys())


def test_the_schema_lists_every_top_level_key_with_its_meaning() -> None:
    properties = json_schema()["properties"]
    assert set(SECTION_OF) <= set(properties)
    assert all(schema["description"] for schema in properties.values())
    assert properties["flash_attention"]["deprecated"] is True
    json.dumps(json_schema())


def test_every_reference_of_the_schema_is_defined() -> None:
    text = json.dumps(json_schema())
    definitions = json_schema()["$defs"]
    for part in text.split('"#/$defs/')[1:]:
        assert part.split('"')[0] in definitions


def test_required_keys_are_those_without_which_nothing_is_valid() -> None:
    assert set(REQUIRED) <= set(VALID)


def test_a_key_of_every_status_is_explained() -> None:
    found = {info.status for info in all_keys().values()}
    assert found == {"acts", "no-op", "refused", "translated"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("lora_r", "lora_r"),
        ("lora-r", "lora_r"),
        ("datasets.0.path", "datasets.*.path"),
        ("test_datasets.3.type.format", "datasets.*.type.format"),
        ("loftq_bits", "peft.loftq_config.loftq_bits"),
        ("fsdp_config.offload_params", "fsdp_config.offload_params"),
        ("flash_attention", "flash_attention"),
        ("model_config", "model_config"),
    ],
)
def test_keys_are_found(name: str, key: str) -> None:
    assert [info.name for info in find_key(name)] == [key]


def test_a_name_in_several_places_is_found_in_each() -> None:
    assert {info.name for info in find_key("field_system")} == {
        "datasets.*.field_system",
        "datasets.*.type.field_system",
    }


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean `lora_r`"):
        find_key("lora_rr")


def test_what_is_said_about_a_key() -> None:
    (info,) = find_key("warmup_ratio")
    lines = dict(key_lines(info))
    assert lines["takes"] == "a number at least 0 and at most 1"
    assert lines["default"] == "empty"
    assert lines["status"] == "acts"
    assert "exclude each other" in lines["rule"]


def test_problems_as_paragraphs() -> None:
    problems = [
        Problem("lora_rr", "unknown key", "Did you mean `lora_r`?", "run.yaml", 3),
        Problem("", "cannot read this file", file="run.yaml"),
    ]
    assert problem_lines(problems) == [
        "run.yaml:3: lora_rr\n  unknown key\n  Did you mean `lora_r`?",
        "run.yaml\n  cannot read this file",
    ]
