"""Processes that each build one shard at a time; this module is also what runs in them.

A worker starts from this module and not from the program that asked for it, as those of
`multiprocessing` do: no script is run a second time, and nothing is imported that tokenising does
not need. Requests and answers are pickles, each after its length.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Protocol

from newtune.errors import DataError

_SIZE_BYTES = 8


class Builder(Protocol):
    """A dataset that can build a shard; pickles as paths and options."""

    def build(self, shard: int, /) -> None:
        """Build a shard."""
        ...


class Workers:
    """Processes to build shards of these datasets; as many threads may ask at once."""

    def __init__(self, datasets: Sequence[Builder], processes: Sequence["_Worker"]) -> None:
        self._free: queue.Queue[_Worker] = queue.Queue()
        for process in processes:
            process.send((sys.path, datasets))
            self._free.put(process)

    def build(self, dataset: int, shard: int) -> None:
        """Have a free process build a shard, and wait.

        Raises:
            DataError: what the shard's building raised; or the process was ended from outside.
        """
        worker = self._free.get()
        try:
            error = worker.ask((dataset, shard))
        finally:
            self._free.put(worker)
        if error is not None:
            raise error


@contextmanager
def start_workers(datasets: Sequence[Builder], processes: int) -> Iterator[Workers]:
    """Start so many processes; they end with the context, and with this process."""
    with ExitStack() as stack:
        started = [_Worker() for _ in range(processes)]
        for worker in started:
            stack.callback(worker.end)
        yield Workers(datasets, started)


class _Worker:
    """A process as its parent sees it."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from newtune.data.shard_workers import work; work()"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # noqa: TID251
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def send(self, content: Any) -> None:
        _write(_there(self._process.stdin), content)

    def ask(self, job: tuple[int, int]) -> Exception | None:
        try:
            self.send(job)
            answer: Exception | None = _read(_there(self._process.stdout))
        except (BrokenPipeError, EOFError):
            return DataError(
                f"A process that prepares data ended with status {self._process.wait()}; -9 means "
                "that it was killed, as when memory runs out. What is complete is kept: run "
                "again, with a smaller `dataset_num_proc` or more memory."
            )
        return answer

    def end(self) -> None:
        self._process.kill()  # what it had begun is not renamed yet, so that nothing half is left
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe_there = _there(pipe)
            pipe_there.close()


def work() -> None:
    """Build what standard input asks for, until it ends: so a killed parent ends this too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # noqa: TID251 (the library's only switch)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a user's own format prints is no answer
    sys.path[:], datasets = _read(sys.stdin.buffer)
    jobs: queue.Queue[tuple[int, int]] = queue.Queue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    while True:
        dataset, shard = jobs.get()
        _write(answers, _outcome(datasets[dataset], shard))


def _receive(jobs: "queue.Queue[tuple[int, int]]") -> None:
    while True:
        try:
            jobs.put(_read(sys.stdin.buffer))
        except EOFError:
            os._exit(1)


def _outcome(dataset: Builder, shard: int) -> Exception | None:
    try:
        dataset.build(shard)
    except Exception as error:  # noqa: BLE001  it is raised again in the parent
        return error
    return None


def _write(pipe: IO[bytes], content: Any) -> None:
    packed = pickle.dumps(content)
    pipe.write(len(packed).to_bytes(_SIZE_BYTES))
    pipe.write(packed)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:
    """Return the next content.

    Raises:
        EOFError: there is none.
    """
    size = int.from_bytes(pipe.read(_SIZE_BYTES))
    packed = pipe.read(size)
    if not size or len(packed) < size:
        raise EOFError
    return pickle.loads(packed)


def _there(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("a worker's pipes were asked for when it was started")
    return pipe
