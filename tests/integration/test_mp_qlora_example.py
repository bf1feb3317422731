"""The tutorial's third lab: its three scripts, one after the other, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Hub
from tiny import save_tiny_checkpoint

LAB = Path(__file__).parents[2] / "examples" / "mp_qlora"


def run(script: str, *words: str, where: Path, **environment: str) -> str:
    """Run a script as the tutorial types it, `newtune` being this checkout's."""
    done = subprocess.run(
        [str(LAB / script), *words],
        cwd=where,
        env={**os.environ, "PATH": f"{where}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What a reader types behind each script to take a model and data of their own."""
    command = tmp_path / "newtune"
    command.write_text(f"#!{sys.executable}\nfrom newtune.cli.main import main\nmain()\n")
    command.chmod(0o755)
    base = save_tiny_checkpoint(tmp_path / "base", hidden_size=64, intermediate_size=128)
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} {n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = json.dumps([{"path": str(tmp_path / "rows.jsonl"), "type": "alpaca"}])
    sizes = ["--sequence_len", "256", "--num_epochs", "1", "--max_steps", "4"]
    return [
        *("--base_model", str(base), "--datasets", data, *sizes),
        *("--val_set_size", "0.2", "--learning_rate", "0.02", "--bf16", "false"),
        *("--output_dir", str(tmp_path / "out"), "--dataset_prepared_path", str(tmp_path / "p")),
    ]


def test_finetune_merge_and_upload_run_as_the_tutorial_types_them(
    tmp_path: Path, words: list[str], hub: Hub
) -> None:
    run("finetune.sh", *words, where=tmp_path)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    printed = run("merge.sh", *words, where=tmp_path)
    assert "KL(adapter‖merged)" in printed
    proof = json.loads((tmp_path / "out" / "merged" / "verification.json").read_text())
    assert proof["passed"]
    assert proof["base_bits"] == 4
    token = hub.add_user("me", "hf_never_to_be_seen_0123456789")
    printed = run(
        "upload.sh",
        *words,
        where=tmp_path,
        HUB_MODEL_ID="me/lab",
        HF_TOKEN=token,
        HF_ENDPOINT=hub.url,
        HF_HUB_CACHE=str(tmp_path / "hub-cache"),
    )
    assert token not in printed
    assert ("model", "me/lab") in hub.repos


def test_upload_asks_where_to(tmp_path: Path, words: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HUB_MODEL_ID"}
    done = subprocess.run(
        [str(LAB / "upload.sh")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "HUB_MODEL_ID=OWNER/NAME" in done.stderr
