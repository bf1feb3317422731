"""The examples of each dataset as shards on disk, found by content; what is whole is kept.

    PREPARED/datasets/KEY/00003-of-00012.arrow   the examples of a fixed range of rows
    PREPARED/datasets/KEY/00003-of-00012.json    what was counted; written last: the shard is whole

KEY is made of everything that changes tokens. A preparation that was killed goes on with the
shards that are missing; a full disk leaves none that is half.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from newtune.data.build import Limits, RowReader, build_shard
from newtune.data.counts import Tally
from newtune.data.shard_workers import start_workers
from newtune.data.sources import Rows
from newtune.data.store import StoreFile, is_whole
from newtune.errors import DataError
from newtune.logs import logger

SHARD_ROWS = 4096
"""Rows of a shard, unless the configuration says how many shards there are."""

THREADS = 3
"""Shards built at a time in one process: with two, both are rendered at once too often, and the
tokenizer waits."""

CORES_FOR_THREADS = 4
"""Cores that the threads of one process keep busy. Of the work on a row the interpreter does a
quarter to a third, one thread at a time; the tokenizer does the rest on all cores."""

ROWS_WORTH_PROCESSES = 50_000
"""From so many rows on, starting processes (a second each) costs less than they save."""

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
            locks.enter_context(_locked(folder))
        jobs = _missing(datasets, force=force)
        if jobs:
            _build(datasets, jobs, processes)
    return len(jobs)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a dataset's folder; say so when another process has it."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("Another process prepares %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
        processes = processes_worth_starting(rows, _cores())
    with _builder(datasets, min(processes, len(jobs))) as (threads, build):
        started = said = time.monotonic()
        executor = ThreadPoolExecutor(threads)
        try:
            futures: list[Future[None]] = [executor.submit(build, job) for job in jobs]
            for done, future in enumerate(futures, 1):
                future.result()
                if time.monotonic() - said > SAY_PROGRESS_EVERY:
                    said = time.monotonic()
                    left = (said - started) / done * (len(jobs) - done)
                    logger.info("Tokenised %d of %d shards, %.0f s left", done, len(jobs), left)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def processes_worth_starting(rows: int, cores: int) -> int:
    """Return in how many processes to prepare so many rows; 1: in threads of this one."""
    return cores if rows >= ROWS_WORTH_PROCESSES and cores > CORES_FOR_THREADS else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _builder(
    datasets: Sequence[ShardedDataset], processes: int
) -> Iterator[tuple[int, Callable[[Job], None]]]:
    """Yield how many threads build shards, and what builds one: the thread itself or a process.

    Threads let one shard be rendered while the tokenizer, which needs no interpreter lock and has
    its own threads, works on others.
    """
    if processes < 2:
        for dataset in datasets:
            dataset.reader.warm_up()
        yield THREADS, lambda job: datasets[job.dataset].build(job.shard)
        return
    with start_workers(datasets, processes) as workers:
        yield processes, lambda job: workers.build(job.dataset, job.shard)
