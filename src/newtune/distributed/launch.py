"""Starts the processes of a run by torch's elastic launcher, and stays until they have ended.

Signals go on to the processes, which save a checkpoint; their exit codes come back as one.
"""

import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]  # accelerate's own dependency
from torch.distributed import DistStoreError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from newtune.distributed.rounds import OPT_OUT, FreshStores
from newtune.distributed.watch import FAILED, INTERRUPTED, LOST_PROCESS, USER_ERROR
from newtune.errors import SetupError
from newtune.logs import logger

NOT_TRIED_AGAIN = frozenset({USER_ERROR, INTERRUPTED})
GRACE_SECONDS = 3600
"""How long stopped processes may save; a scheduler that sent the signal has its own, shorter."""
MACHINES_SECONDS = 900
"""How long machines wait for each other."""


@dataclass(frozen=True)
class Launch:
    """What is started."""

    processes: int
    """On this machine."""
    nodes: int = 1
    """Machines that train together."""
    node_rank: int | None = None
    """0 on the machine that `rendezvous` names; None where its address tells."""
    rendezvous: str = ""
    """HOST:PORT at which machines meet; empty for one machine."""
    max_restarts: int = 0


def launch(plan: Launch, words: Sequence[str]) -> int:
    """Run `newtune train WORDS` in every process; return the exit code.

    Raises:
        SetupError: the machines do not find each other.
    """
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what happens is said below
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(plan.processes)))
    own_address = _own_address(plan.rendezvous)
    if plan.rendezvous and (interface := _interface(own_address)):
        # gloo binds to the machine's name otherwise, which may stand for 127.0.0.1
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ[OPT_OUT] = "1"
    handler = FreshStores(get_rendezvous_handler(_rendezvous(plan)), own_address)
    spec = WorkerSpec(
        role="newtune",
        local_world_size=plan.processes,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-m", "newtune.cli.train", *words),
        max_restarts=plan.max_restarts,
        local_addr=own_address,
    )
    agent = Agent(spec, DefaultLogsSpecs(), shutdown_timeout=GRACE_SECONDS)
    try:
        return exit_code(agent.run())
    except SignalException:
        return INTERRUPTED
    except (RendezvousTimeoutError, RendezvousConnectionError, DistStoreError) as error:
        raise SetupError(_not_found(plan, error)) from error
    finally:
        handler.shutdown()


class Agent(LocalElasticAgent):
    """Starts the processes again after a failure, except one that would only happen again."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if not result.is_failed():
            return result
        rank, code = first_failure(result)
        if code in NOT_TRIED_AGAIN:
            self._remaining_restarts = 0
            return result
        if code != LOST_PROCESS:  # then the processes have named the one that was lost
            logger.error("process %d on %s %s", rank, socket.gethostname(), ending(code))
        if left := self._remaining_restarts:
            logger.warning("all processes start again from the last checkpoint (%d left)", left)
        return result


def first_failure(result: RunResult) -> tuple[int, int]:
    """Return rank and exit code of the process that failed first; the launcher ended the others."""
    rank, failure = next(iter(result.failures.items()))
    return rank, failure.exitcode


def exit_code(result: RunResult) -> int:
    """Return the exit code of the command: that which says most of what went wrong."""
    codes = {failure.exitcode for failure in result.failures.values()}
    known = (USER_ERROR, INTERRUPTED, LOST_PROCESS)
    return next((code for code in known if code in codes), FAILED if codes else 0)


def ending(code: int) -> str:
    """Say how a process ended."""
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL (often the system's answer to a lack of memory)"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"failed (exit code {code})"


def _threads(processes: int) -> int:
    return max(1, (os.cpu_count() or 1) // processes)


def _rendezvous(plan: Launch) -> RendezvousParameters:
    options: dict[str, Any] = {"join_timeout": MACHINES_SECONDS}
    if plan.node_rank is not None:
        options["is_host"] = plan.node_rank == 0
    return RendezvousParameters(
        backend="c10d",
        endpoint=plan.rendezvous or "127.0.0.1:0",
        run_id="newtune" if plan.rendezvous else uuid.uuid4().hex,
        min_nodes=plan.nodes,
        max_nodes=plan.nodes,
        local_addr=_own_address(plan.rendezvous),
        **options,
    )


def _own_address(rendezvous: str) -> str:
    """Return this machine's address on the way to the others; no packet is sent.

    Raises:
        SetupError: the other machine's name is not known, or no way leads there.
    """
    if not rendezvous:
        return "127.0.0.1"
    host, _, port = rendezvous.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            own = str(probe.getsockname()[0])
        if own.startswith("127.") or own == "::1":  # HOST is this machine's name for itself
            return socket.gethostbyname(socket.gethostname())
        return own
    except OSError as error:
        raise SetupError(f"--rendezvous {rendezvous}: {error}") from error


def _interface(address: str) -> str:
    """Return the network interface that has an address; empty if none has."""
    of_interfaces = psutil.net_if_addrs().items()
    return next((name for name, has in of_interfaces if address in {a.address for a in has}), "")


def _not_found(plan: Launch, error: Exception) -> str:
    if not plan.rendezvous:
        return f"the processes of this machine do not find each other: {error}"
    return (
        f"{plan.nodes} machines did not meet at {plan.rendezvous} ({error}). Start the same command"
        " on each, with `--node-rank 0` on the one whose address that is, and let its port through."
    )
