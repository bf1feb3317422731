"""Preparing a dataset beside the raw tokenizer and beside other trainers, on the same texts.

    python benchmarks/preprocess.py [--rows 6000] [--repeats 5] [--gsm8k train.jsonl]
                                    [--trl-python PYTHON] [--axolotl-python PYTHON]
                                    [--llamafactory-python PYTHON]
                                    [--turns 2,8,32] [--memory-rows 1000000]

Every path is a process of its own on all cores, started and warmed up before the clock runs; they
take turns, file by file, so that what else the machine does falls on all of them. `raw` encodes
texts that are rendered already and reads ids and offsets; `newtune` reads the file, renders,
tokenises, masks, filters, shuffles and writes. A ratio is the median over the repeats of one
repeat's two times: `wall` of the clock, `CPU` of all cores together, which suffers less from
neighbours.

`--turns` gives rows of fixed length and prints what a turn costs, `--memory-rows` prepares that
many short rows once for its peak memory. Full size: `--rows 200000`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conversations import write_conversations

from newtune.model.tokenizer import read_tokenizer

HERE = Path(__file__).parent
DEFAULT_TOKENIZER = HERE.parent / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0
WARM_UP_ROWS = 200
TURNS_IN_ALL = 40_000

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
)
"""The same text, for TRL, which trains what stands in the marks."""


@dataclass
class Preparer:
    """A path's process, and what it said."""

    name: str
    process: subprocess.Popen[str]
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, python: str, script: str, *arguments: str) -> "Preparer":
        """Start a path and wait until it has loaded."""
        process = subprocess.Popen(
            [python, str(HERE / "preparers" / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        preparer = cls(name, process)
        preparer.versions = preparer._read()
        return preparer

    def prepare(self, rows: Path) -> dict[str, float]:
        """Return what one preparation of a file took."""
        self.process.stdin.write(f"{rows}\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print while they are imported
                return json.loads(line)
        raise SystemExit(f"{self.name}: ended with status {self.process.wait()}")


def main() -> None:
    """Measure what the command line asks for, print it, and write it where `--out` says."""
    given = arguments()
    results: dict[str, Any] = {"machine": machine(), "measured": {}}
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        work = Path(folder)
        read_tokenizer(str(given.tokenizer)).save_pretrained(work / "tokenizer")
        paths = start_all(given, work)
        results["versions"] = {path.name: path.versions for path in paths}
        for name, rows in row_files(given, work):
            results["measured"][name] = compare(paths, rows, name, given.repeats)
        if given.turns:
            results["turns"] = cost_of_turns(paths[1], work, given.turns, given.repeats)
        for path in paths:
            path.stop()
        if given.memory_rows:
            results["memory"] = peak_memory(work, given.memory_rows)
    results["machine"]["load_after"] = os.getloadavg()[0]
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=6000, help="generated rows; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gsm8k", type=Path, help="train.jsonl of GSM8K, prepared as chat")
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_TOKENIZER)
    parser.add_argument("--trl-python", help="Python of an environment that has trl")
    parser.add_argument("--axolotl-python", help="Python of an environment that has axolotl")
    parser.add_argument("--llamafactory-python", help="the same for llamafactory")
    parser.add_argument("--turns", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--memory-rows", type=int, help="two-turn rows, for the peak memory")
    parser.add_argument("--work", type=Path, help="where files of the benchmark lie meanwhile")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return what the numbers depend on, and nothing that names the machine."""
    cpu = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "newtune": version("newtune"),
        "load_before": os.getloadavg()[0],
    }


def start_all(given: argparse.Namespace, work: Path) -> list[Preparer]:
    """Start every path that was asked for and let each prepare a few rows once."""
    common = (str(work / "tokenizer"), str(work))
    paths = [
        Preparer.start("raw", sys.executable, "raw_tokenizer.py", *common, TEMPLATE),
        Preparer.start("newtune", sys.executable, "newtune_data.py", *common, TEMPLATE),
    ]
    others = {
        "trl": (given.trl_python, MARKED),
        "axolotl": (given.axolotl_python, TEMPLATE),
        "llamafactory": (given.llamafactory_python, TEMPLATE),
    }
    for name, (python, template) in others.items():
        if python:
            paths.append(Preparer.start(name, python, f"{name}_data.py", *common, template))
    warm_up = write_conversations(work / "warm_up.jsonl", WARM_UP_ROWS, seed=SEED + 1)
    for path in paths:
        path.prepare(warm_up)
    return paths


def row_files(given: argparse.Namespace, work: Path) -> list[tuple[str, Path]]:
    """Write the files to prepare and return them with what they are called."""
    files = []
    if given.gsm8k:
        files.append(("GSM8K as chat", write_gsm8k(given.gsm8k, work / "gsm8k.jsonl")))
    if given.rows:
        rows = write_conversations(work / "rows.jsonl", given.rows, seed=SEED)
        files.append((f"{given.rows:,} generated rows of 2 to 20 turns", rows))
    return files


def write_gsm8k(source: Path, target: Path) -> Path:
    """Write each question and answer as a conversation of two turns."""
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as file:
        for line in lines:
            row = json.loads(line)
            messages = [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return target


def compare(paths: list[Preparer], rows: Path, name: str, repeats: int) -> dict[str, Any]:
    """Let the paths prepare a file in turn, again and again; print and return what it took.

    Raises:
        SystemExit: newtune and the raw tokenizer did not make the same number of tokens.
    """
    runs: dict[str, list[dict[str, float]]] = {path.name: [] for path in paths}
    for _ in range(repeats):
        for path in paths:
            runs[path.name].append(path.prepare(rows))
    if runs["raw"][0]["tokens"] != runs["newtune"][0]["tokens"]:
        raise SystemExit(f"{name}: other tokens: {runs['raw'][0]}, {runs['newtune'][0]}")
    tokens = int(runs["raw"][0]["tokens"])
    print(f"\n{name}: {int(runs['raw'][0]['rows']):,} rows, {tokens:,} tokens, {repeats} repeats")
    print(f"{'':13}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'wall/raw':>10}{'CPU/raw':>9}")
    summary = {}
    for path, took in runs.items():
        wall, cpu = ratio(took, runs["raw"], "seconds"), ratio(took, runs["raw"], "cpu_seconds")
        median = {
            key: statistics.median(run[key] for run in took)
            for key in ("seconds", "cpu_seconds", "peak_mb")
        }
        summary[path] = {**median, "wall_ratio": wall, "cpu_ratio": cpu, "runs": took}
        print(
            f"{path:13}{median['seconds']:9.2f}{median['cpu_seconds']:9.2f}"
            f"{median['peak_mb']:9.0f}{wall:10.2f}{cpu:9.2f}"
        )
    return summary


def ratio(ours: list[dict[str, float]], raw: list[dict[str, float]], key: str) -> float:
    """Return the median of the repeats' ratios."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, raw, strict=True))


def cost_of_turns(
    newtune: Preparer, work: Path, turns: list[int], repeats: int
) -> dict[str, dict[str, float]]:
    """Print what newtune takes for as many turns in all, in short rows and in long ones."""
    files = {
        count: write_conversations(
            work / f"turns{count}.jsonl", TURNS_IN_ALL // count, SEED, turns=count
        )
        for count in turns
    }
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in turns}
    for _ in range(repeats):
        for count, file in files.items():
            runs[count].append(newtune.prepare(file))
    print(f"\nnewtune, {TURNS_IN_ALL:,} turns in all\n{'turns a row':>12}{'CPU us/turn':>13}"
          f"{'CPU us/token':>14}")  # fmt: skip
    costs = {}
    for count, took in runs.items():
        seconds = statistics.median(run["cpu_seconds"] for run in took)
        cost = {
            "cpu_us_per_turn": 1e6 * seconds / TURNS_IN_ALL,
            "cpu_us_per_token": 1e6 * seconds / took[0]["tokens"],
        }
        costs[str(count)] = cost
        print(f"{count:12}{cost['cpu_us_per_turn']:13.1f}{cost['cpu_us_per_token']:14.3f}")
    return costs


def peak_memory(work: Path, rows: int) -> dict[str, float]:
    """Prepare many short rows once, in a fresh process; print and return what it took."""
    file = write_conversations(work / "many.jsonl", rows, SEED, turns=2)
    path = Preparer.start(
        "newtune", sys.executable, "newtune_data.py", str(work / "tokenizer"), str(work), TEMPLATE
    )
    took = path.prepare(file)
    path.stop()
    print(
        f"\nnewtune, {rows:,} rows of two turns, {took['tokens']:,} tokens: "
        f"{took['peak_mb']:.0f} MB at the peak, {took['seconds']:.0f} s"
    )
    return took


if __name__ == "__main__":
    main()
