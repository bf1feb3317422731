"""From file and command line to a config, or to problems with their places."""

from pathlib import Path

import pytest

from newtune.config.load import load_config
from newtune.errors import ConfigError, Problem

TEXT = """\
base_model: some/model
datasets:
  - path: rows.jsonl
    type: alpaca
learning_rate: 1e-4
micro_batch_size: 2
gradient_accumulation_steps: 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


def problems_of(file: Path, *words: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(file, words)
    return caught.value.problems


def test_a_file_becomes_sections(file: Path) -> None:
    config = load_config(file)
    assert config.source == file
    assert config.model.base_model == "some/model"
    assert config.data.datasets[0].type == "alpaca"
    assert config.training.learning_rate == 1e-4
    assert config.notices == ()


def test_the_command_line_goes_before_the_file(file: Path) -> None:
    words = ["--learning-rate", "2e-4", "--datasets.0.path", "x", "--datasets.1.path=y", "--bf16"]
    config = load_config(file, words)
    assert config.training.learning_rate == 2e-4
    assert [entry.path for entry in config.data.datasets] == ["x", "y"]
    assert config.compute.bf16 is True


def test_an_empty_word_takes_a_key_back(file: Path) -> None:
    file.write_text(TEXT + "warmup_ratio: 0.1\n")
    config = load_config(file, ["--warmup_ratio=", "--warmup_steps", "5"])
    assert (config.training.warmup_steps, config.training.warmup_ratio) == (5, None)


def test_todays_name_on_the_command_line_goes_before_the_old_one_in_the_file(file: Path) -> None:
    file.write_text(TEXT + "flash_attention: true\n")
    config = load_config(file, ["--attn_implementation", "sdpa"])
    assert config.compute.attn_implementation == "sdpa"


def test_problems_carry_file_line_and_key(file: Path) -> None:
    file.write_text(TEXT + "lora_rr: 8\nseed: x\nspecial_tokens:\n  pad_tokken: p\n")
    assert [str(problem) for problem in problems_of(file)] == [
        f"{file}:8: lora_rr: unknown key. Did you mean `lora_r`?",
        f"{file}:9: seed: got `x` (text); expected a whole number at least 0",
        f"{file}:11: special_tokens.pad_tokken: unknown key. Did you mean `pad_token`?",
    ]


def test_problems_below_a_translated_key_are_where_the_user_wrote(file: Path) -> None:
    text = "flash_attention: true\nattn_implementation: eager\nfsdp_final_state_dict_type: X\n"
    file.write_text(TEXT + text)
    found = {problem.path: problem.line for problem in problems_of(file)}
    assert found == {"flash_attention": 8, "fsdp_final_state_dict_type": 10}


def test_problems_of_the_command_line_say_so(file: Path) -> None:
    (problem,) = problems_of(file, "--seed", "x")
    assert str(problem).startswith("command line: seed: got `x`")


def test_a_rule_about_a_missing_key_names_the_file(file: Path) -> None:
    file.write_text("base_model: x\n")
    places = {(problem.path, problem.file, problem.line) for problem in problems_of(file)}
    assert places == {
        ("datasets", str(file), None),
        ("learning_rate", str(file), None),
        ("micro_batch_size", str(file), None),
    }


def test_duplicates_are_reported_with_the_rest(file: Path) -> None:
    file.write_text(TEXT + "seed: 1\nseed: 2\nlora_rr: 1\n")
    assert [problem.path for problem in problems_of(file)] == ["seed", "lora_rr"]


def test_strict_lets_the_command_line_change_only_what_the_file_has(file: Path) -> None:
    file.write_text(TEXT + "strict: true\nseed:\n")
    load_config(file, ["--learning_rate", "1", "--datasets.0.path", "x", "--seed", "3"])
    (problem,) = problems_of(file, "--num_epochs", "3")
    assert problem.path == "num_epochs"
    assert "strict" in problem.message


def test_trust_remote_code_is_a_caution_until_a_revision_is_pinned(file: Path) -> None:
    file.write_text(TEXT + "trust_remote_code: true\n")
    (notice,) = load_config(file).notices
    assert "some/model" in notice
    assert load_config(file, ["--revision_of_model", "abc"]).notices == ()
