"""What `newtune train` starts, and what the ends of processes mean for the command."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from configs import valid
from newtune.cli.train import Asked, plan_launch, run
from newtune.distributed.launch import (
    Launch,
    _interface,
    _own_address,
    ending,
    exit_code,
    first_failure,
)
from newtune.distributed.world import require_one_meant
from newtune.errors import SetupError
from newtune.plan.processes import processes_of

RELORA = {"adapter": "lora", "lora_target_linear": True, "relora": True, "relora_steps": 5}


@pytest.mark.parametrize(
    ("changes", "gpus", "count", "why"),
    [
        ({}, 8, 8, "8 GPU(s) visible"),
        ({}, 0, 1, "0 GPU(s) visible"),
        ({"device_map": "auto"}, 8, 1, "`device_map` spreads its layers over the devices"),
        ({"ddp": False}, 8, 1, "`ddp: false`"),
        (RELORA, 8, 1, "ReLoRA trains on one"),
    ],
)
def test_one_process_per_gpu_unless_one_is_needed(
    changes: dict[str, Any], gpus: int, count: int, why: str
) -> None:
    processes, reason = processes_of(valid(**changes), gpus)
    assert processes == count
    assert why in reason


def test_what_is_asked_for_is_started() -> None:
    assert plan_launch(valid(), Asked(num_processes=1)) is None
    assert plan_launch(valid(), Asked(num_processes=2)) == Launch(2)
    assert plan_launch(valid(), Asked(num_processes=1, max_restarts=3)) == Launch(1, max_restarts=3)
    asked = Asked(8, nodes=2, node_rank=1, rendezvous="first:29500")
    assert plan_launch(valid(), asked) == Launch(8, 2, 1, "first:29500")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(2, nodes=2), "needs `--rendezvous HOST:PORT`.*there is none"),
        (Asked(2, nodes=2, rendezvous="first"), "got `first`"),
        (Asked(2, rendezvous="first:1"), "for several machines: give --nodes"),
        (Asked(2, nodes=2, node_rank=2, rendezvous="first:1"), "from 0 to 1, got 2"),
    ],
)
def test_options_that_do_not_go_together(asked: Asked, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        plan_launch(valid(), asked)


def test_a_launcher_that_runs_already_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SetupError, match="--num-processes: a launcher has started this process"):
        run(tmp_path / "run.yaml", [], asked=Asked(num_processes=2))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "accelerate launch was asked for several processes and started one",
        ),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 processes"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is not set"),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"},
            "srun started 2 processes",
        ),
    ],
)
def test_one_process_where_several_were_meant(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        require_one_meant(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "8", "WORLD_SIZE": "1"},
    ],
)
def test_one_process_that_was_meant(environment: dict[str, str]) -> None:
    require_one_meant(environment)


def ended(**codes: int) -> Any:
    failures = {int(name[1:]): SimpleNamespace(exitcode=code) for name, code in codes.items()}
    return SimpleNamespace(failures=failures)


def test_the_exit_code_says_most_of_what_went_wrong() -> None:
    assert exit_code(ended()) == 0
    assert exit_code(ended(r1=-9, r0=75)) == 75
    assert exit_code(ended(r1=1, r0=-15)) == 1
    assert exit_code(ended(r0=2, r1=2)) == 2
    assert exit_code(ended(r0=130, r1=130)) == 130
    assert first_failure(ended(r1=-9, r0=-15)) == (1, -9)
    assert ending(-9).startswith("was ended by SIGKILL")
    assert ending(-11) == "was ended by SIGSEGV"
    assert ending(3) == "failed (exit code 3)"


def test_the_address_is_the_one_that_leads_to_the_others() -> None:
    assert _interface("127.0.0.1") == "lo"
    assert _interface("no address") == ""
    assert _own_address("") == "127.0.0.1"
    assert _own_address("127.0.0.1:29500") == socket.gethostbyname(socket.gethostname())
    with pytest.raises(SetupError, match="--rendezvous no-such-host"):
        _own_address("no-such-host.invalid:1")
