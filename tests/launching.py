"""Training runs on one or several processes of this machine, and their comparison.

pairs = Pairs(Bench.new(folder), processes=2)
pairs.compare("FSDP2", "full, packed", {"sample_packing": True}, fsdp_config={...})
pairs.train()                          # two launches
pairs.differences("FSDP2", "full, packed")
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import forks
from newtune.run_dir import RunDir, read_json_lines
from tiny import save_tiny_checkpoint

WORDS = (
    *("red", "green", "blue", "round", "small", "large", "seven", "nine"),
    *("under", "over", "water", "stone", "bird", "tree"),
)


WORKER = Path(__file__).parent / "distributed" / "worker.py"
RUNS_OF_A_LAUNCH = 20
"""A launch is given ten minutes."""
TOLERANCE = 1e-5
LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0,
}
QLORA: dict[str, Any] = {**LORA, "adapter": "qlora", "load_in_4bit": True}
PACKED = {"sample_packing": True}
KINDS: dict[str, dict[str, Any]] = {"full": {}, "LoRA": LORA, "QLoRA": QLORA}
FORMS: dict[str, dict[str, Any]] = {"padded": {}, "packed": PACKED}
ACCUMULATIONS = {1: "accumulation 1", 4: "accumulation 4, a short last step"}
SAVING: dict[str, Any] = {"batch_size": 4, "save_steps": 3, "save_strategy": None}


def matrix(*kinds: str, rows: int = 2) -> dict[str, dict[str, Any]]:
    """Return the cases of docs/parity.md; `rows`: how many all processes take at once."""
    return {
        f"{kind}, {form}, {said}": {**KINDS[kind], **packing, "batch_size": rows * times}
        for kind in kinds
        for form, packing in FORMS.items()
        for times, said in ACCUMULATIONS.items()
    }


def measures_all() -> bool:
    """Tell whether every row of docs/parity.md is measured (`make parity`), and not a few."""
    return "NEWTUNE_PARITY" in os.environ


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

    def train(self, processes: int, configs: Iterable[Path]) -> None:
        """Train one configuration after the other, in as few launches as may be."""
        waiting = list(configs)
        for start in range(0, len(waiting), RUNS_OF_A_LAUNCH):
            self.python(processes, WORKER, *waiting[start : start + RUNS_OF_A_LAUNCH])

    def python(self, processes: int, *words: str | Path, code: int = 0) -> str:
        """Run `python WORDS` in some processes; return what they print. `code`: how they end."""
        log = self.root / "said.log"
        ended = forks.python(processes, *words, environment=environment(), log=log)
        said = log.read_text(errors="replace")
        assert ended == code, (ended, said[-9000:])
        return said

    def checkpoint(self, name: str, step: int = 3) -> str:
        """Return where a run saved a step."""
        return str(self.root / name / f"checkpoint-{step}")

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


class Pairs:
    """Runs on several processes, each with the run on one that it is compared with."""

    def __init__(self, bench: Bench, *, processes: int = 2) -> None:
        self.bench = bench
        self.processes = processes
        self.cases: list[tuple[str, str]] = []
        self._alone: dict[str, Path] = {}
        self._together: dict[str, Path] = {}

    def compare(self, engine: str, case: str, values: Mapping[str, Any], **sharing: Any) -> None:
        """Have a case trained on one process and, with what `sharing` says, on several."""
        self.cases.append((engine, case))
        self.alone(f"one: {case}", **values)
        self.together(f"{engine}: {case}", **values, **sharing)

    def alone(self, name: str, **values: Any) -> None:
        """Have a run on one process trained besides."""
        self._alone[name] = self.bench.config(name, **values)

    def together(self, name: str, **values: Any) -> None:
        """Have a run on several processes trained besides; in the order given."""
        self._together[name] = self.bench.config(name, **values)

    def train(self) -> None:
        """Train what was asked for since the last time, on one process first."""
        self.bench.train(1, self._alone.values())
        self.bench.train(self.processes, self._together.values())
        self._alone, self._together = {}, {}

    def differences(self, engine: str, case: str) -> dict[str, float]:
        """Return how far a case is from that of one process; no more than is tolerated."""
        found = differences(self.bench, f"one: {case}", f"{engine}: {case}")
        assert all(value <= TOLERANCE for value in found.values()), found
        return found

    def write_parity(self) -> None:
        """Write all differences into docs/parity.md, with `make parity`."""
        write_parity(
            {f"{engine}: {case}": self.differences(engine, case) for engine, case in self.cases}
        )


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
