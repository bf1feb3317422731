"""Starts the processes of a run by Ray Train, on a Ray of this machine or on a cluster.

Each worker of Ray's starts one process, as torchrun's agent does, and waits for it: signals, exit
codes and the watch are as with every launcher. The store at which the processes meet is that of the
worker's own group, and it outlives them.
"""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from torch import distributed

from newtune.distributed.launch import NOT_TRIED_AGAIN, ending
from newtune.distributed.watch import FAILED, INTERRUPTED, LOST_PROCESS, USER_ERROR
from newtune.errors import SetupError
from newtune.logs import logger

LAST_LINES = 30
"""Of what a process said, so many come back with its exit code."""
WAIT_SECONDS = 30 * 24 * 3600
"""Workers wait for the process that takes longest; that it does not hang is the watch's concern."""


@dataclass(frozen=True)
class RayLaunch:
    """What is started."""

    workers: int
    resources: Mapping[str, float]
    """What each needs of the cluster (`CPU`, `GPU`, ...); empty: what is usual."""
    name: str | None
    folder: Path
    """Where Ray keeps its notes of the run."""
    max_restarts: int = 0


@dataclass(frozen=True)
class Ended:
    """How the process of a worker ended."""

    rank: int
    host: str
    code: int
    said: str
    """The last lines that it wrote to stderr."""


def launch_on_ray(plan: RayLaunch, words: Sequence[str]) -> int:
    """Run `newtune train WORDS` in every worker; return the exit code.

    Raises:
        SetupError: the cluster cannot be reached, or lacks what the workers need.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init()
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SetupError(
            f"no Ray at RAY_ADDRESS {os.environ.get('RAY_ADDRESS')}: {error}"
        ) from error
    try:
        there = ray.cluster_resources()
        plan = replace(plan, resources=plan.resources or usual_resources(plan.workers, there))
        require_resources(plan, there)
        return _run_again_and_again(plan, words)
    finally:
        ray.shutdown()


def _run_again_and_again(plan: RayLaunch, words: Sequence[str]) -> int:
    for start in range(plan.max_restarts + 1):
        code = _run(plan, words, start)
        left = plan.max_restarts - start
        if code in (0, *NOT_TRIED_AGAIN) or not left:
            break
        logger.warning("all processes start again from the last checkpoint (%d left)", left)
    return code


def _run(plan: RayLaunch, words: Sequence[str], start: int) -> int:
    try:
        ended: list[Ended] = _trainer(plan, words, start).fit().return_value
    except TrainingFailedError as error:
        logger.error("Ray lost a worker: %s", error)
        return LOST_PROCESS
    return exit_code(ended)


def _trainer(plan: RayLaunch, words: Sequence[str], start: int) -> TorchTrainer:
    name = plan.name if plan.name is None or not start else f"{plan.name}-restart-{start}"
    return TorchTrainer(
        run_process,
        train_loop_config={"words": list(words), "folder": str(Path.cwd()), "start": start},
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.resources.get("GPU", 0) > 0,
            resources_per_worker=dict(plan.resources),
        ),
        torch_config=TorchConfig(backend="gloo", timeout_s=WAIT_SECONDS),
        run_config=RunConfig(name=name, storage_path=str(plan.folder.resolve())),
    )


def run_process(work: Mapping[str, Any]) -> list[Ended]:
    """Run one process of the training to its end, as a worker; return how those of all ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "newtune.cli.train", *work["words"]],
        env={
            **os.environ,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(work["start"]),
        },
        cwd=work["folder"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=LAST_LINES)
    for line in process.stderr:
        last.append(line)
        sys.stderr.write(line)
    rank = distributed.get_rank()
    mine = Ended(rank, socket.gethostname(), process.wait(), "".join(last).strip())
    everyones: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyones, mine)
    return everyones


def usual_resources(workers: int, there: Mapping[str, float]) -> dict[str, float]:
    """Return what each worker gets where nothing is asked for."""
    return {"CPU": 1, "GPU": 1} if there.get("GPU", 0) >= workers else {"CPU": 1}


def require_resources(plan: RayLaunch, there: Mapping[str, float]) -> None:
    """Check that the cluster has what the workers need, for which Ray would wait without end.

    Raises:
        SetupError: naming what is missing.
    """
    for name, each in plan.resources.items():
        needed, has = each * plan.workers, there.get(name, 0)
        if needed > has:
            known = ", ".join(sorted(key for key in there if ":" not in key))
            raise SetupError(
                f"resources_per_worker: {plan.workers} worker(s) with {each:g} {name} each need "
                f"{needed:g} {name}; this Ray has {has:g}. It knows {known}. Lower "
                "`ray_num_workers` or `resources_per_worker`, or join a larger one (RAY_ADDRESS)."
            )


def exit_code(ended: Sequence[Ended]) -> int:
    """Return the exit code of the command, that which says most; print whose error it was."""
    failed = [each for each in ended if each.code]
    if not failed:
        return 0
    order = (USER_ERROR, INTERRUPTED, LOST_PROCESS)
    codes = {each.code for each in failed}
    code = next((known for known in order if known in codes), FAILED)
    those = [each for each in failed if each.code == code] or failed
    first = max(those, key=lambda each: bool(each.said))
    logger.error("process %d on %s %s", first.rank, first.host, ending(first.code))
    sys.stderr.write(f"{first.said}\n")
    return code
