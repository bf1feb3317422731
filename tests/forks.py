"""Processes of a launch as forks of one that has imported newtune: each begins ten seconds sooner.

They get the variables that a launcher sets. What launchers do besides is tested by launching.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["newtune.run"])
LONGEST_SECONDS = 600


def python(processes: int, *words: str | Path, environment: Mapping[str, str], log: Path) -> int:
    """Run `python WORDS` (a script, or -m and a module) in some processes that know each other.

    What they print goes to `log`. The first that fails ends the others. Returns its code, or 0.
    """
    port = _free_port()
    started = [
        SERVER.Process(
            target=_be_python,
            args=([*map(str, words)], {**environment, **_variables(rank, processes, port)}, log),
        )
        for rank in range(processes)
    ]
    log.write_bytes(b"")
    for process in started:
        process.start()
    return _code_of_the_end(started)


def _code_of_the_end(started: list[BaseProcess]) -> int:
    running = {process.sentinel: process for process in started}
    try:
        while running:
            ended = wait(list(running), timeout=LONGEST_SECONDS)
            if not ended:
                return 124
            for sentinel in ended:
                process = running.pop(sentinel)  # type: ignore[call-overload]
                process.join()
                if process.exitcode:
                    return int(process.exitcode)
        return 0
    finally:
        for process in running.values():
            process.kill()
            process.join()


def _variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what a launcher tells a process."""
    return {
        **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
        **{name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _be_python(words: list[str], environment: dict[str, str], log: Path) -> None:
    with log.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()  # every run collects garbage, a second each over what the libraries brought
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
