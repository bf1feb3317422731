"""`newtune train` starts processes, and what becomes of a run when one of them is broken."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from breaking import lines, newtune_train, started
from launching import Bench, run

pytestmark = pytest.mark.xdist_group("launch")

LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0.1,
    "batch_size": 2,
}
SAVING = {**LORA, "num_epochs": 4, "save_steps": 4, "save_strategy": None}
STEPS = 44
TIMEOUT = 12


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Make a model, data, and a run that nothing breaks."""
    bench = Bench.new(tmp_path_factory.mktemp("launch"))
    run(newtune_train(bench.config("whole", **SAVING)))
    return bench


def assert_same_end(bench: Bench, name: str, whole: str = "whole") -> None:
    ours, theirs = bench.weights(whole), bench.weights(name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert bench.lines(whole)[-1] == bench.lines(name)[-1]


def metrics(bench: Bench, name: str) -> Path:
    return bench.root / name / "metrics.jsonl"


def test_it_starts_the_processes_that_were_asked_for(bench: Bench) -> None:
    assert bench.lines("whole")[-1]["step"] == STEPS
    random = {path.name for path in (bench.root / "whole/checkpoint-44").glob("rng_state*")}
    assert random == {"rng_state_0.pth", "rng_state_1.pth"}


def test_an_error_that_every_process_meets_is_printed_once(bench: Bench, tmp_path: Path) -> None:
    command = newtune_train(bench.config("whole", **SAVING))
    with started(command, tmp_path / "said") as launch:
        assert launch.end() == 2
    assert launch.said.count("already holds results of a run") == 1
    assert "Traceback" not in launch.said


def test_a_killed_process_and_the_run_goes_on_by_itself(bench: Bench, tmp_path: Path) -> None:
    config = bench.config("killed", **SAVING, hang_timeout_seconds=TIMEOUT)
    with started(newtune_train(config, "--max-restarts", "1"), tmp_path / "said") as launch:
        launch.wait_until(lambda: lines(metrics(bench, "killed")) >= 6, "six steps")
        launch.signal(1, signal.SIGKILL)
        assert launch.end() == 0, launch.said[-3000:]
    assert launch.said.count("process 1 on") == 2  # by the launcher, and by the other process
    assert "was ended by SIGKILL" in launch.said
    assert re.search(r"has not answered for \d s; it stood at step \d+ \(\w+\)", launch.said)
    assert "all processes start again from the last checkpoint (1 left)" in launch.said
    assert_same_end(bench, "killed")


def test_a_stopped_process_ends_the_others_in_time(bench: Bench, tmp_path: Path) -> None:
    long = {**SAVING, "num_epochs": 400, "save_steps": 4000, "hang_timeout_seconds": TIMEOUT}
    config = bench.config("stopped", **long)
    with started(newtune_train(config), tmp_path / "said") as launch:
        launch.wait_until(lambda: lines(metrics(bench, "stopped")) >= 6, "six steps")
        first = launch.pid(0)
        when = launch.signal(1, signal.SIGSTOP)
        launch.wait_until(lambda: has_ended(first), "the end of process 0")
        assert time.monotonic() - when < TIMEOUT
        launch.signal(1, signal.SIGKILL)  # what is stopped does not hear the launcher either
        assert launch.end() == 75
    assert launch.said.count("has not answered for") == 1
    assert "error process 1 on" in launch.said
    assert "it stood at step" in launch.said


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(bench: Bench, tmp_path: Path) -> None:
    config = bench.config("torn", **SAVING, hang_timeout_seconds=TIMEOUT)
    root = bench.root / "torn"
    with started(newtune_train(config, "--max-restarts", "1"), tmp_path / "said") as launch:
        writer = launch.pid(0)
        launch.wait_until(lambda: bool(stopped_in_a_write(writer, root)), "a write", every=0.0005)
        os.kill(writer, signal.SIGKILL)
        assert launch.end() == 0, launch.said[-3000:]
    assert not list(root.glob("*.partial"))
    assert_same_end(bench, "torn")


@pytest.mark.slow
def test_killed_while_its_part_of_a_checkpoint_is_written(bench: Bench, tmp_path: Path) -> None:
    parts = {**SAVING, "num_epochs": 1, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
    run(newtune_train(bench.config("parts", **parts)))
    config = bench.config("torn-parts", **parts, hang_timeout_seconds=TIMEOUT)
    root = bench.root / "torn-parts"
    with started(newtune_train(config, "--max-restarts", "1"), tmp_path / "said") as launch:
        writer = launch.pid(1)
        launch.wait_until(
            lambda: bool(stopped_in_a_write(writer, root, "parts")), "a write", every=0.0005
        )
        os.kill(writer, signal.SIGKILL)
        assert launch.end() == 0, launch.said[-3000:]
    assert not [*root.glob("*.partial"), *root.glob("*.parts")]
    assert_same_end(bench, "torn-parts", "parts")


@pytest.mark.slow
def test_killed_while_the_data_are_prepared(bench: Bench, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    config = bench.config(
        "unprepared", **SAVING, hang_timeout_seconds=TIMEOUT, dataset_prepared_path=str(prepared)
    )
    with started(newtune_train(config, "--max-restarts", "1"), tmp_path / "said") as launch:
        pid = launch.pid(0)
        launch.wait_until(prepared.is_dir, "preparation", every=0.0005)
        os.kill(pid, signal.SIGKILL)
        assert launch.end() == 0, launch.said[-3000:]
    assert_same_end(bench, "unprepared")


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_a_checkpoint(bench: Bench, tmp_path: Path) -> None:
    config = bench.config("asked", **SAVING)
    with started(newtune_train(config, "--max-restarts", "3"), tmp_path / "said") as launch:
        launch.wait_until(lambda: lines(metrics(bench, "asked")) >= 6, "six steps")
        launch.process.send_signal(signal.SIGTERM)
        assert launch.end() == 130
    assert launch.said.count("SIGTERM received") == launch.said.count("Stopped by SIGTERM") == 1
    assert "start again" not in launch.said
    run(newtune_train(config, "--resume"))
    assert_same_end(bench, "asked")


def stopped_in_a_write(pid: int, root: Path, suffix: str = "partial") -> list[Path]:
    """Stop a process that writes a checkpoint; return what it has half written."""
    if not list(root.glob(f"checkpoint-*.{suffix}")):
        return []
    os.kill(pid, signal.SIGSTOP)
    if not (half := list(root.glob(f"checkpoint-*.{suffix}"))):
        os.kill(pid, signal.SIGCONT)
    return half


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended; its parent may not have asked yet."""
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
