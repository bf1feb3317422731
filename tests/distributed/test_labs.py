"""The labs of the tutorial, as it types them, on two processes with a tiny model."""

import json
import sys
from pathlib import Path

import pytest

from launching import Bench, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("labs")]

RECIPES = Path(__file__).parents[2] / "recipes"


def test_fsdp_and_lora(tmp_path: Path) -> None:
    """`accelerate launch -m newtune.cli.train fsdp_lora.yaml`; without GPUs two are asked for."""
    bench = Bench.new(tmp_path)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = {
        "base_model": tmp_path / "base",
        "tokenizer_type": "AutoTokenizer",
        "datasets.0.path": tmp_path / "rows.json",
        "dataset_prepared_path": tmp_path / "prepared",
        "output_dir": tmp_path / "lab",
        "sequence_len": 192,
        "bf16": "false",
        "num_epochs": 1,
        "warmup_steps": 1,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    recipe = str(RECIPES / "fsdp_lora.yaml")
    done = run([*accelerate, "--num_processes=2", "-m", "newtune.cli.train", recipe, *words])
    assert done.stderr.count("`fsdp: full_shard` is now") == 1
    plan = json.loads((bench.root / "lab/plan.json").read_text())
    assert plan["training"]["parallel"]["engine"] == "fsdp2"
    assert bench.weights("lab")
