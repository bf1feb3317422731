"""`newtune preprocess` and `newtune data`, as a user sees them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from newtune.cli.main import app
from newtune.cli.show_data import TRAINED, UNTRAINED, colored
from newtune.types import Example
from tiny import save_tiny_checkpoint, tiny_tokenizer


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(6)]
    rows += [{"instruction": "x" * 900, "output": "long"}, {"instruction": "x", "output": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny_checkpoint(tmp_path / "base")
    values = {
        "base_model": str(tmp_path / "base"),
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
        "sequence_len": 300,
        "sample_packing": True,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    return tmp_path / "run.yaml"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_preprocess_counts_and_the_second_time_uses_the_cache(config):
    first = run("preprocess", config)
    file = config.parent / "rows.jsonl"
    assert f"dropped 1: longer than 300 tokens (first: {file}, line 7)" in first
    assert f"dropped 1: `output` is empty (first: {file}, line 8)" in first
    assert "written to last_run_prepared" in first
    assert "as cached in last_run_prepared" in run("preprocess", config)
    assert "written to" in run("preprocess", config, "--force")
    assert "written to" in run("preprocess", config, "--sequence_len", "310")


def test_data_shows_packs_a_row_and_what_was_dropped(config):
    shown = run("data", config, "--rows", 1)
    assert "pack 1" in shown
    assert "pack 2" not in shown
    assert "trained" in shown
    assert "Say 4" in run("data", config, "--row", 5)
    assert "rows.jsonl, line 7" in run("data", config, "--dropped")
    failed = CliRunner().invoke(app, ["data", str(config), "--row", "99"])
    assert failed.exit_code == 2


def test_control_characters_of_a_row_do_not_reach_the_terminal():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("a\x1b[2J\nb")
    example = Example(input_ids=_array(ids), labels=_array([-100] * 2 + ids[2:]))
    text = colored(example, tokenizer)
    assert text.plain == "a␛[2J⏎\nb"
    assert [span.style for span in text.spans] == [UNTRAINED, TRAINED]


def _array(values: list[int]):
    import numpy as np

    return np.array(values, dtype=np.int32)
