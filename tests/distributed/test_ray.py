"""Processes that Ray starts on this machine train as those of `--num-processes 2`."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from breaking import lines, started
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


def test_a_process_that_dies_is_named_and_the_run_goes_on_by_itself(tmp_path: Path) -> None:
    bench = Bench.new(tmp_path)
    long = {**CASE, "num_epochs": 12, "save_steps": 4, "save_strategy": None}
    bench.train(2, [bench.config("whole", **long)])
    config = bench.config("killed", **long, **RAY, hang_timeout_seconds=20)
    command = [sys.executable, "-m", "newtune.cli.train", str(config), "--max-restarts", "1"]
    with started(command, tmp_path / "said") as launch:
        metrics = tmp_path / "killed" / "metrics.jsonl"
        launch.wait_until(lambda: lines(metrics) >= 6, "six steps")
        os.kill(trainer_of_rank(config, "1"), signal.SIGKILL)
        assert launch.end() == 0, launch.said[-4000:]
    assert "process 1 on" in launch.said
    assert "all processes start again from the last checkpoint (1 left)" in launch.said
    assert bench.lines("whole")[-1] == bench.lines("killed")[-1]
    assert set(differences(bench, "whole", "killed").values()) == {0.0}


def trainer_of_rank(config: Path, rank: str) -> int:
    """Return the id of the process that trains this configuration with a rank."""
    for process in psutil.process_iter():
        words = process.cmdline()
        is_trainer = "newtune.cli.train" in words and str(config) in words
        if is_trainer and process.environ().get("RANK") == rank:
            return process.pid
    raise AssertionError("no process of that rank trains")
