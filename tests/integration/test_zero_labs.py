"""The labs with DeepSpeed, as the tutorial types them, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest
import yaml

import forks
from launching import environment, run
from newtune.run_dir import RunDir, read_json_lines
from newtune.training.checkpoint import damage_of, saved_shapes
from tiny import save_tiny_checkpoint

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.xdist_group("zero")

RECIPES = Path(__file__).parents[2] / "recipes"
TYPED = ("-deepspeed", "deepspeed_configs/zero3_bf16_cpuoffload_all.json")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What a reader types behind a lab to take a model and data of their own."""
    base = save_tiny_checkpoint(tmp_path / "base")
    asked = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It is."}]
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps({'messages': asked})}\n" * 60)
    data = json.dumps([{"path": str(tmp_path / "rows.jsonl"), "type": "chat_template"}])
    return [
        *("--base_model", str(base), "--datasets", data, "--sequence_len", "128"),
        *("--batch_size", "4", "--max_steps", "3", "--learning_rate", "0.02"),
        *("--output_dir", str(tmp_path / "out"), "--dataset_prepared_path", str(tmp_path / "p")),
    ]


def losses(folder: Path) -> list[float]:
    lines = read_json_lines(RunDir(folder).metrics_file)
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    "recipe",
    ["fft_zero3.yaml", pytest.param("zero3_lora.yaml", marks=pytest.mark.slow)],
)
def test_a_lab_runs_on_two_processes(tmp_path: Path, words: list[str], recipe: str) -> None:
    train = ("-m", "newtune.cli.train", RECIPES / recipe, *words, "--logging_steps", "1")
    log = tmp_path / "said"
    assert forks.python(2, *train, environment=environment(), log=log) == 0, log.read_text()
    assert damage_of(tmp_path / "out" / "checkpoint-3") is None
    assert saved_shapes(tmp_path / "out")
    first, *_, last = losses(tmp_path / "out")
    assert last < first


def test_the_lab_without_the_key_takes_it_from_the_command_line(
    tmp_path: Path, words: list[str]
) -> None:
    lab = yaml.safe_load((RECIPES / "zero3_lora.yaml").read_text())
    del lab["deepspeed"]
    (tmp_path / "zero3_train.yaml").write_text(yaml.safe_dump(lab))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    run([*launch, "-m", "newtune.cli.train", str(tmp_path / "zero3_train.yaml"), *TYPED, *words])
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["training"]["parallel"]["zero"]["stage"] == 3
    assert plan["training"]["parallel"]["zero"]["config"]["bf16"]["enabled"] is True
    assert saved_shapes(tmp_path / "out")
