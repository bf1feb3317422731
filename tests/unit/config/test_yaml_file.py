"""YAML 1.2 with lines, duplicates and clear refusals."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newtune.config.yaml_file import EMPTY, parse_document, parse_value, read_document
from newtune.errors import ConfigError

FILE = Path("run.yaml")


def values(text: str) -> dict[str, Any]:
    return parse_document(text, FILE).values


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, FILE)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("1e-4", 1e-4),
        ("2e5", 2e5),
        ("1.5", 1.5),
        ("-3", -3),
        ("012", 12),
        ("0x1F", 31),
        ("0o14", 12),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("!!str 12", "12"),
        ("[a, 1]", ["a", 1]),
        ("{0: 20GiB, cpu: 1}", {0: "20GiB", "cpu": 1}),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    assert values(f"key: {text}") == {"key": value}
    assert parse_value(text) == value


def test_infinity() -> None:
    assert values("key: -.inf") == {"key": -math.inf}
    assert math.isnan(values("key: .nan")["key"])


def test_a_key_without_a_value_is_empty_and_not_null() -> None:
    assert values("a:\nb: ~\n") == {"a": EMPTY, "b": None}


def test_lines_of_keys_and_entries() -> None:
    document = parse_document("a: 1\n\nb:\n  - c: 2\n    d: 3\n  - 4\n", FILE)
    assert document.lines == {
        ("a",): 1,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 0, "c"): 4,
        ("b", 0, "d"): 5,
        ("b", 1): 6,
    }


def test_a_key_given_twice_names_both_lines() -> None:
    document = parse_document("a: 1\nb: 2\na: 3\n", FILE)
    assert [str(problem) for problem in document.problems] == [
        "run.yaml:3: a: given twice, in lines 1 and 3"
    ]


def test_anchors_and_merges() -> None:
    text = "base: &base {x: 1, y: 2}\nkey:\n  <<: *base\n  y: 3\n"
    assert values(text)["key"] == {"x": 1, "y": 3}


def test_an_alias_to_itself_is_refused() -> None:
    document = parse_document("a: &a [*a]\n", FILE)
    assert "contains it" in str(document.problems[0])


def test_malformed_text_is_one_problem_with_its_line() -> None:
    assert refusal("a: 1\nb: [1,\n").startswith("run.yaml:3: not valid YAML:")
    assert "Indent with spaces" in refusal("a:\n\tb: 1\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n- b\n", "the top level must be a mapping"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
    ],
)
def test_files_that_hold_no_mapping(text: str, said: str) -> None:
    assert said in refusal(text)


def test_python_tags_are_refused() -> None:
    document = parse_document("a: !!python/name:os.system\n", FILE)
    assert "not supported" in str(document.problems[0])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_document(tmp_path / "none.yaml")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        read_document(tmp_path)


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("output_dir: ./é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_document(file)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_document(file).values == {"a": 1, "b": 2}


finite_floats = st.floats(allow_nan=False, allow_infinity=False)
# YAML has no surrogate pairs, and no unescaped control characters
text = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))
scalars = st.none() | st.booleans() | st.integers() | text | finite_floats
trees = st.recursive(
    scalars,
    lambda below: st.lists(below) | st.dictionaries(text, below),
    max_leaves=8,
)


@given(st.dictionaries(text, trees))
def test_json_is_yaml(tree: dict[str, Any]) -> None:
    assert values(json.dumps(tree, ensure_ascii=False)) == tree
