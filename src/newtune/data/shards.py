"""The examples of each dataset as shards on disk, found by content; what is whole is kept.

    PREPARED/datasets/KEY/00003-of-00012.arrow   the examples of a fixed range of rows
    PREPARED/datasets/KEY/00003-of-00012.json    what was counted; written last: the shard is whole

KEY is made of everything that changes tokens. A preparation that was killed goes on with the
shards that are missing; a full disk leaves none that is half.
"""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from newtune.data.build import Limits, RowReader, build_shard
from newtune.data.counts import Tally
from newtune.data.sources import Rows
from newtune.data.store import StoreFile, is_whole
from newtune.errors import DataError
from newtune.logs import logger

SHARD_ROWS = 4096
"""Rows of a shard, unless the configuration says how many shards there are."""

ROWS_WORTH_PROCESSES = 50_000
"""From so many rows on, starting processes (seconds) costs less than they save."""

SAY_PROGRESS_EVERY = 10.0
"""Seconds."""

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class ShardedDataset:
    """One dataset, how it is read, and the folder of its shards."""

    name: str
    rows: Rows
    reader: RowReader
    limits: Limits
    folder: Path
    count: int
    """Number of shards."""

    def examples_file(self, shard: int) -> Path:
        """Return the Arrow file of a shard; shards count from 0."""
        return self.folder / f"{shard:05d}-of-{self.count:05d}.arrow"

    def counts_file(self, shard: int) -> Path:
        """Return the file of what was counted."""
        return self.examples_file(shard).with_suffix(".json")

    def is_built(self, shard: int) -> bool:
        """Say whether a shard is there and whole."""
        return self.counts_file(shard).is_file() and is_whole(self.examples_file(shard))

    def rows_of(self, shard: int) -> Rows:
        """Return the rows of a shard: all shards together have every row, in order."""
        total = len(self.rows)
        start, end = total * shard // self.count, total * (shard + 1) // self.count
        return Rows(self.rows.table, self.rows.positions[start:end], self.rows.fingerprint)

    def build(self, shard: int) -> None:
        """Write a shard aside, then rename it.

        Raises:
            DataError: a row is wrong, or the disk is full.
        """
        with _aside(self.examples_file(shard)) as aside:
            tally = build_shard(self.rows_of(shard), self.reader, self.limits, aside)
        with _aside(self.counts_file(shard)) as aside:
            aside.write_text(json.dumps(tally.as_dict()), encoding="utf-8")

    @cached_property
    def tally(self) -> Tally:
        """What was counted over all shards, which must be built."""
        texts = (self.counts_file(n).read_text(encoding="utf-8") for n in range(self.count))
        return Tally.together(Tally.from_dict(json.loads(text)) for text in texts)

    def files(self, dataset: int) -> list[StoreFile]:
        """Return the Arrow files as dataset number `dataset` of a store."""
        return [StoreFile(self.examples_file(shard), dataset) for shard in range(self.count)]


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Yield a path to write to; rename it to `path` when all went well, else remove it."""
    aside = path.with_name(f"{path.name}.partial")
    try:
        yield aside
        aside.rename(path)
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        raise DataError(
            f"{path.parent}: no room to write prepared data ({os.strerror(error.errno)}). What is "
            "complete is kept: make room, or set `dataset_prepared_path` to another disk, and the "
            "next run goes on."
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def shard_counts(
    rows: Sequence[int], pieces: Sequence[int | None], wanted: int | None
) -> list[int]:
    """Return into how many shards each dataset is cut.

    `pieces` are numbers given for a dataset; else `wanted` files are shared out by rows, at least
    one each; else a shard has about SHARD_ROWS rows. No shard is empty.
    """
    total = sum(rows)
    counts = []
    for size, given in zip(rows, pieces, strict=True):
        by_size = -(-size // SHARD_ROWS)
        shared = round(wanted * size / total) if wanted else by_size
        counts.append(min(size, max(1, given or shared)))
    return counts


class Job(NamedTuple):
    """A shard to build: the dataset's place in the list, and the shard's number."""

    dataset: int
    shard: int


def build_missing(
    datasets: Sequence[ShardedDataset], *, processes: int | None = None, force: bool = False
) -> int:
    """Build the shards that are not there and return how many they were.

    Several processes may call this at once: one builds, the others wait and find everything
    there. `processes` None: as many as cores when there are rows enough. `force` builds all anew.

    Raises:
        DataError: a row is wrong, or the disk is full. Shards that are whole stay.
    """
    if not force and not _missing(datasets, force=False):
        return 0
    with ExitStack() as locks:
        for folder in sorted({dataset.folder for dataset in datasets}):
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(folder.with_name(f".{folder.name}.lock")))
        jobs = _missing(datasets, force=force)
        if jobs:
            _build(datasets, jobs, processes)
    return len(jobs)


def _missing(datasets: Sequence[ShardedDataset], *, force: bool) -> list[Job]:
    jobs: dict[Path, Job] = {}  # the same dataset may be configured twice: one file, one job
    for number, dataset in enumerate(datasets):
        for shard in range(dataset.count):
            if force or not dataset.is_built(shard):
                jobs.setdefault(dataset.examples_file(shard), Job(number, shard))
    return list(jobs.values())


def _build(datasets: Sequence[ShardedDataset], jobs: Sequence[Job], processes: int | None) -> None:
    """Build shards side by side; the first error in their order ends it."""
    rows = sum(len(datasets[job.dataset].rows_of(job.shard)) for job in jobs)
    if processes is None:
        processes = _cores() if rows >= ROWS_WORTH_PROCESSES else 1
    started = said = time.monotonic()
    executor, build = _executor(datasets, min(processes, len(jobs)))
    with executor:
        futures: list[Future[None]] = [executor.submit(build, job) for job in jobs]
        try:
            for done, future in enumerate(futures, 1):
                future.result()
                if time.monotonic() - said > SAY_PROGRESS_EVERY:
                    said = time.monotonic()
                    left = (said - started) / done * (len(jobs) - done)
                    logger.info("Tokenised %d of %d shards, %.0f s left", done, len(jobs), left)
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _executor(
    datasets: Sequence[ShardedDataset], processes: int
) -> tuple[Executor, Callable[[Job], None]]:
    """Return threads of this process, or processes, and what builds a shard there.

    Two threads let one shard be rendered while the tokenizer, which needs no interpreter lock and
    has its own threads, works on another.
    """
    if processes < 2:
        for dataset in datasets:
            dataset.reader.warm_up()
        return ThreadPoolExecutor(2), lambda job: datasets[job.dataset].build(job.shard)
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_start_worker, initargs=(datasets,)
    )
    return pool, _build_in_worker


_of_worker: Sequence[ShardedDataset] = ()
"""What a worker process builds: handed over when it starts, so that a job is two numbers."""


def _start_worker(datasets: Sequence[ShardedDataset]) -> None:
    global _of_worker
    _of_worker = datasets
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # noqa: TID251 (the library's only switch)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed: nothing else would ever tell it."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _build_in_worker(job: Job) -> None:
    _of_worker[job.dataset].build(job.shard)
