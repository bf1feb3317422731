"""Runs that are broken on purpose: find a process of a launch by its rank, stop it, kill it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from launching import environment

LONGEST_SECONDS = 300


def newtune_train(config: Path, *options: str) -> list[str]:
    """Return the command that trains a configuration on two processes of its own."""
    words = ("train", str(config), "--num-processes", "2", *options)
    return [sys.executable, "-c", "from newtune.cli.main import main; main()", *words]


@dataclass
class Launched:
    """A launch under way, with what it printed so far in a file."""

    process: subprocess.Popen[bytes]
    output: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def said(self) -> str:
        """Return what all processes printed, in one line."""
        return " ".join(self.output.read_text(errors="replace").split())

    def pid(self, rank: int) -> int:
        """Return the process with a rank, once it runs."""
        found: list[int] = []
        self.wait_until(lambda: bool(found.extend(self._pids(rank)) or found), f"rank {rank}")
        return found[0]

    def _pids(self, rank: int) -> Iterator[int]:
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                words = (folder / "environ").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended meanwhile, or is not ours
                continue
            if parent == self.process.pid and f"RANK={rank}".encode() in words:
                yield int(folder.name)

    def signal(self, rank: int, number: signal.Signals) -> float:
        """Send a signal to the process with a rank; return when."""
        os.kill(self.pid(rank), number)
        return time.monotonic()

    def wait_until(self, is_so: Callable[[], bool], what: str, *, every: float = 0.02) -> None:
        """Wait until something is so while the launch runs."""
        until = time.monotonic() + LONGEST_SECONDS
        while not is_so():
            assert self.process.poll() is None, (what, self.said[-3000:])
            assert time.monotonic() < until, (what, self.said[-3000:])
            time.sleep(every)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(LONGEST_SECONDS)


@contextmanager
def started(command: list[str], output: Path) -> Iterator[Launched]:
    """Start a launch; nothing of it stays behind."""
    with output.open("wb") as file:
        process = subprocess.Popen(command, env=environment(), stdout=file, stderr=file)
    launch = Launched(process, output)
    try:
        yield launch
    finally:
        for rank in (0, 1):
            for pid in launch._pids(rank):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def lines(file: Path) -> int:
    """Return how many lines a file has."""
    return len(file.read_text().splitlines()) if file.is_file() else 0
