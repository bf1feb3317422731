"""docs/data.md shows what `newtune data` prints."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from newtune.cli.main import app
from tiny import save_tiny_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_terminal_picture_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    picture = re.search(r"```console\n\$ newtune data my-run.yaml\n(.*?)```", page, re.DOTALL)
    assert rows
    assert picture
    monkeypatch.chdir(tmp_path)
    save_tiny_checkpoint(tmp_path / "base")
    Path("my-rows.jsonl").write_text(rows[1], encoding="utf-8")
    values = {
        "base_model": "base",
        "datasets": [{"path": "my-rows.jsonl", "type": "chat_template"}],
        "sequence_len": 64,
        "sample_packing": True,
        "shuffle_merged_datasets": False,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "output_dir": "out",
    }
    Path("my-run.yaml").write_text(json.dumps(values), encoding="utf-8")
    result = CliRunner().invoke(app, ["data", "my-run.yaml"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert "\n".join(lines[:-1]) == picture[1].rstrip("\n")
    assert lines[-1].startswith("written to last_run_prepared")
