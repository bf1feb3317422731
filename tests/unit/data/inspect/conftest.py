"""A page of hostile rows, made once by the command line."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from newtune.cli.main import app
from tiny import save_tiny_checkpoint

HOSTILE = (
    "<script>alert(1)</script>",
    "</style></script><h1>x</h1><!--",
    "\"quotes\" & 'single' &amp; <b>",
    "\x1b[2J\x07\x00 \x9b31m",
    "\u202eright to left\u202c",
    "שלום עולם",
    "😀 👨‍👩‍👧 é “”",
    "tab\there\n\n  indented  ",
    "\r\nline \r",
    "<|im_end|> no end",
)


class Written(NamedTuple):
    """A page, and where it and its configuration lie."""

    html: str
    path: Path
    config: Path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("page")
    save_tiny_checkpoint(folder / "base")
    talks = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f"You said: {text}"}]
        for text in HOSTILE
    ]
    talks += [[{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y"}], []]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in talks]
    (folder / "<i>rows & more.jsonl").write_text("".join(lines))
    values = {
        "base_model": str(folder / "base"),
        "datasets": [{"path": "<i>rows & more.jsonl", "type": "chat_template"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": 320,
        "sample_packing": True,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "output_dir": str(folder / "out"),
    }
    config, page = folder / "run.yaml", folder / "page.html"
    config.write_text(json.dumps(values))
    result = CliRunner().invoke(app, ["data", str(config), "--html", str(page), "--batches", "9"])
    assert result.exit_code == 0, result.output
    return Written(page.read_text(encoding="utf-8"), page, config)
