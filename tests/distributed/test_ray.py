"""Processes that Ray starts on this machine train as those of `--num-processes 2`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from launching import Bench, differences, environment, run
from newtune.plan.attention import is_installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(not is_installed("ray"), reason="ray is not installed"),
]

RAY: dict[str, Any] = {
    "use_ray": True,
    "ray_num_workers": 2,
    "ray_run_name": "tried",
    "resources_per_worker": {"CPU": 1},
}
CASE: dict[str, Any] = {"sample_packing": True, "batch_size": 4, "num_epochs": 1}


def train(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "newtune.cli.train", str(config)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_ray_trains_as_two_processes_do(tmp_path: Path) -> None:
    bench = Bench.new(tmp_path)
    done = train(bench.config("ray", **CASE, **RAY))
    assert done.returncode == 0, done.stderr[-4000:]
    two = bench.config("two", **CASE)
    run([sys.executable, "-m", "newtune.cli.train", str(two), "--num-processes", "2"])
    assert set(differences(bench, "two", "ray").values()) == {0.0}
    assert (tmp_path / "ray" / "ray" / "tried").is_dir()


def test_an_error_of_the_users_comes_back(tmp_path: Path) -> None:
    config = Bench.new(tmp_path).config("wrong", **CASE, **RAY, base_model=str(tmp_path / "none"))
    done = train(config)
    assert done.returncode == 2
    assert "process" in done.stderr
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_dies_is_named(tmp_path: Path) -> None:
    config = Bench.new(tmp_path).config(
        "long", **{**CASE, **RAY, "num_epochs": 400}, hang_timeout_seconds=20
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "newtune.cli.train", str(config)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "long" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    os.kill(trainer_of_rank(config, "1"), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said[-4000:]
    assert "process 1 on" in said


def trainer_of_rank(config: Path, rank: str) -> int:
    """Return the id of the process that trains this configuration with a rank."""
    for process in psutil.process_iter():
        words = process.cmdline()
        is_trainer = "newtune.cli.train" in words and str(config) in words
        if is_trainer and process.environ().get("RANK") == rank:
            return process.pid
    raise AssertionError("no process of that rank trains")
