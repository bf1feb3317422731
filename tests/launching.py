"""Training runs on one or two processes of this machine, by torchrun."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from newtune.run_dir import RunDir, read_json_lines
from tiny import save_tiny_checkpoint

WORDS = (
    *("red", "green", "blue", "round", "small", "large", "seven", "nine"),
    *("under", "over", "water", "stone", "bird", "tree"),
)


def environment() -> dict[str, str]:
    """Return the environment of a process that no launcher started."""
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launchers}
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def torchrun(processes: int, *words: str | Path) -> list[str]:
    """Return the command that starts some processes on a free port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={processes}", *map(str, words)]


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it printed is shown if it fails."""
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


@dataclass(frozen=True)
class Bench:
    """A folder with a tiny model, data, and the configurations of runs."""

    root: Path

    @classmethod
    def new(cls, root: Path, *, rows: int = 27) -> "Bench":
        """Make model and data."""
        save_tiny_checkpoint(root / "base")
        draw = random.Random(1)
        lines = []
        for _ in range(rows):
            asked, said = (" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in "ab")
            lines.append({"instruction": asked, "output": said})
        (root / "rows.json").write_text(json.dumps(lines))
        return cls(root)

    def config(self, name: str, **changes: Any) -> Path:
        """Write a configuration whose run lies in a folder of its name."""
        values: Mapping[str, Any] = {
            "base_model": str(self.root / "base"),
            "datasets": [{"path": str(self.root / "rows.json"), "type": "alpaca"}],
            "dataset_prepared_path": str(self.root / "prepared"),
            "val_set_size": 5,
            "sequence_len": 192,
            "micro_batch_size": 1,
            "num_epochs": 2,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "evals_per_epoch": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "bf16": False,
            "output_dir": str(self.root / name),
            **changes,
        }
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump({key: v for key, v in values.items() if v is not None}))
        return file

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return what a run reported, but for times and memory."""
        kept = ("step", "loss", "learning_rate", "grad_norm", "eval_loss", "tokens", "epoch")
        lines = read_json_lines(RunDir(self.root / name).metrics_file)
        return [{key: line[key] for key in kept if key in line} for line in lines]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Return what a run saved at its end."""
        found: dict[str, torch.Tensor] = {}
        for path in sorted((self.root / name).glob("*.safetensors")):
            found |= load_file(path)
        assert found
        return found


def relative(left: float, right: float) -> float:
    return abs(left - right) / max(abs(right), 1e-12)


def differences(bench: Bench, one: str, two: str) -> dict[str, float]:
    """Return the largest difference of two runs in each thing they report, and in the weights."""
    left, right = bench.lines(one), bench.lines(two)
    assert [line.keys() for line in left] == [line.keys() for line in right]
    for key in ("step", "epoch", "tokens", "learning_rate"):
        assert [line.get(key) for line in left] == [line.get(key) for line in right]
    found = {
        key: max(relative(b[key], a[key]) for a, b in zip(left, right, strict=True) if key in a)
        for key in ("loss", "grad_norm", "eval_loss")
    }
    ours, theirs = bench.weights(one), bench.weights(two)
    assert ours.keys() == theirs.keys()
    found["weights"] = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
    return found


def assert_goes_on(bench: Bench, whole: str, rest: str, *, tolerance: float) -> None:
    """Compare a run that went on from another's checkpoint-3 with that run."""
    after = [line for line in bench.lines(whole) if line["step"] > 3]
    lines = bench.lines(rest)
    assert [line["step"] for line in lines] == [line["step"] for line in after]
    for one, two in zip(after, lines, strict=True):
        for key in one.keys() & {"loss", "eval_loss", "learning_rate"}:
            assert relative(two[key], one[key]) <= tolerance, (key, one, two)
    ours, theirs = bench.weights(whole), bench.weights(rest)
    assert ours.keys() == theirs.keys()
    assert all(float((ours[k] - theirs[k]).abs().max()) <= tolerance for k in ours)


def write_parity(found: Mapping[str, Mapping[str, float]]) -> None:
    """Put measured differences into the table of the file that NEWTUNE_PARITY names, if any."""
    if not (name := os.environ.get("NEWTUNE_PARITY")):
        return
    head = ["| run | loss | gradient's norm | evaluation loss | weights |", "|---|---|---|---|---|"]
    lines = Path(name).read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and line not in head]
    rows = {line.split(" | ")[0]: line for line in table}
    for run_name, values in found.items():
        numbers = " | ".join(f"{value:.1e}" for value in values.values())
        rows[f"| {run_name}"] = f"| {run_name} | {numbers} |"
    before = [line for line in lines if not line.startswith("|")]
    Path(name).write_text("\n".join([*before, *head, *rows.values()]) + "\n")
