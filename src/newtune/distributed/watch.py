"""Watches that the processes of a run live and move, and ends this one when another does not.

A thread of each process writes where the process stands into the store at which they met; two
processes read what all have written, the others what those two found. Nobody waits in a collective
for a process that is gone.

    lives   its thread writes: it was not killed or stopped, its machine can be reached
    moves   its main thread comes to the next phase; where a phase is long by nature, it computes,
            or the process reads or writes files
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from torch.distributed import DistError

from newtune.distributed.meeting import Meeting
from newtune.errors import Interrupted, NewtuneError
from newtune.logs import logger

Phase = Literal[
    "prepare", "load", "data", "forward", "backward", "update", "collective", "evaluate", "save"
]
PATIENT = frozenset({"prepare", "load", "evaluate", "save"})
"""Phases that may be long: there a process moves as long as it computes, reads or writes."""
LONGEST_INTERVAL = 2.0
INTERVALS = 10
"""The store is written and read at least so often within the timeout."""
SHARE = 0.8
"""A process is given up after this share of the timeout: the rest is for telling the others."""
ALARM_INTERVALS = 4
"""After an error of the network, a process that is silent for so long is gone."""
FAILED, USER_ERROR, LOST_PROCESS, INTERRUPTED = 1, 2, 75, 130
"""Exit codes of a process: a bug, an error of the user's, another process is gone, stopped."""


@dataclass(frozen=True)
class Report:
    """Where a process stands, as it wrote last."""

    host: str = "?"
    beat: int = 0
    step: int = 0
    """The step under way; 0 before the first."""
    phase: str = "prepare"
    moves: int = 0
    """Phases since the step began: alike on every process that stands at the same place."""
    work: float | None = None
    """What grows while the process works, in a phase that may be long (`work_done`)."""
    ended: int | None = None
    """Exit code of a process that has left."""
    error: str = ""

    @property
    def progress(self) -> tuple[int, int]:
        """Return how far the process is; the one furthest behind is what all wait for."""
        return self.step, self.moves


@dataclass(frozen=True)
class Verdict:
    """Which process is given up, and why."""

    rank: int
    what: str
    code: int
    host: str


class Observer:
    """Judges the reports of processes by one clock, that of the process that reads them."""

    def __init__(self, now: float) -> None:
        self.reports: dict[int, Report] = {}
        self._started = now
        self._beat_at: dict[int, float] = {}
        self._moved_at: dict[int, float] = {}

    def note(self, rank: int, report: Report, now: float) -> None:
        """Take a report."""
        last = self.reports.get(rank)
        if last is None or report.beat != last.beat:
            self._beat_at[rank] = now
        if last is None or _moved(last, report):
            self._moved_at[rank] = now
        self.reports[rank] = report

    def verdict(self, now: float, *, limit: float, silence: float) -> Verdict | None:
        """Return who is given up, if anybody: failed, silent, or not moving."""
        for rank, report in self.reports.items():
            if report.ended:
                return Verdict(rank, f"has failed{_where(report)}", report.ended, report.host)
        live = {rank: r for rank, r in self.reports.items() if r.ended is None}
        for rank, report in live.items():
            quiet = now - self._beat_at[rank]
            if quiet > silence:
                what = f"has not answered for {quiet:.0f} s; it stood{_where(report)}"
                return Verdict(rank, what, LOST_PROCESS, report.host)
        if not live:
            return None
        rank = min(live, key=lambda each: (live[each].progress, each))
        still = now - self._moved_at[rank]
        if still > limit:
            what = f"has not moved for {still:.0f} s; it stands{_where(live[rank])}"
            return Verdict(rank, what, LOST_PROCESS, live[rank].host)
        return None


def _moved(last: Report, now: Report) -> bool:
    works = now.work is not None and last.work is not None and now.work > last.work
    return now.progress != last.progress or now.phase != last.phase or works


def _where(report: Report) -> str:
    if report.error:
        return f": {report.error}"
    return f" at step {report.step} ({report.phase})"


class Watch:
    """This process's part: `at` says where the main thread is, two threads do the rest.

    Without a timeout, or alone, no thread runs.
    """

    def __init__(self, meeting: Meeting | None = None, timeout_seconds: float = 0) -> None:
        self.runs = meeting is not None and meeting.size > 1 and timeout_seconds > 0
        self.interval = min(LONGEST_INTERVAL, timeout_seconds / INTERVALS)
        self.limit = SHARE * timeout_seconds
        self._meeting = meeting
        self._report = Report(meeting.host if meeting else "")
        self._beat = 0
        self._first_step: int | None = None
        self._over = threading.Event()
        self._alarmed = threading.Event()
        self._reached = time.monotonic()
        self._threads: list[threading.Thread] = []

    # --- the main thread

    def at(self, phase: Phase, step: int | None = None) -> None:
        """Say what comes now; `step` where another one begins."""
        report = self._report
        if step is not None and step != report.step:
            self._first_step = self._first_step or step
            report = replace(report, step=step, moves=0)
        self._report = replace(report, phase=phase, moves=report.moves + 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say that this process waits for the others while the block runs."""
        before = self._report.phase
        self.at("collective")
        yield
        self._report = replace(self._report, phase=before, moves=self._report.moves + 1)

    def __enter__(self) -> "Watch":
        """Start to watch."""
        if self.runs:
            assert self._meeting is not None
            self._reached = time.monotonic()
            meeting = self._meeting.again()
            for target, arguments in ((self._watch, (meeting,)), (self._guard, ())):
                thread = threading.Thread(target=target, args=arguments, daemon=True)
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to watch, and say to the others how it ended."""
        if not self.runs:
            return
        if error is not None and is_of_the_network(error):
            # if another process is gone, its name is known in a moment; its launcher cannot know
            self._alarmed.set()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._over.wait((ALARM_INTERVALS + 3) * self.interval)
        ended = _exit_code(error)
        self._report = replace(self._report, ended=ended, error=_brief(error) if ended else "")
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=2 * self.interval)

    # --- the threads

    def _watch(self, meeting: Meeting) -> None:
        observer = Observer(time.monotonic())
        others = watched_by(meeting.rank, meeting.size)
        while not self._over.is_set():
            try:
                self._write(meeting)
                self._read(meeting, observer, others)
                self._reached = time.monotonic()
            except DistError:
                pass  # the guard's clock runs
            self._over.wait(self.interval)
        with suppress(DistError):
            self._write(meeting)

    def _write(self, meeting: Meeting) -> None:
        self._beat += 1
        report = replace(self._report, beat=self._beat)
        if report.phase in PATIENT or self._in_first_step(report):
            report = replace(report, work=round(work_done(), 2))
        meeting.store.set(f"at/{meeting.rank}", json.dumps(asdict(report)))
        if self._alarmed.is_set():
            meeting.store.set("alarm", "")

    def _in_first_step(self, report: Report) -> bool:
        return report.step == self._first_step and report.phase != "collective"

    def _read(self, meeting: Meeting, observer: Observer, others: list[int]) -> None:
        now = time.monotonic()
        for rank in others:
            if meeting.store.check([f"at/{rank}"]):
                said: dict[str, Any] = json.loads(meeting.store.get(f"at/{rank}"))
                observer.note(rank, Report(**said), now)
        silence = self.limit
        if meeting.store.check(["alarm"]):
            silence = min(silence, ALARM_INTERVALS * self.interval)
        verdict = observer.verdict(now, limit=self.limit, silence=silence)
        if verdict is not None and not meeting.store.check(["verdict"]):
            meeting.store.compare_set("verdict", "", json.dumps(asdict(verdict)))
        if meeting.store.check(["verdict"]) and not self._over.is_set():
            self._end(meeting, Verdict(**json.loads(meeting.store.get("verdict"))))

    def _end(self, meeting: Meeting, verdict: Verdict) -> None:
        """End this process; one of each machine says why, but where the error was printed."""
        printed_there = verdict.code != LOST_PROCESS and verdict.host == meeting.host
        says = verdict.rank != meeting.rank and not printed_there
        if says and meeting.first(f"verdict/{meeting.host}"):
            logger.error(
                "process %d on %s %s. All processes end; go on from the last checkpoint with "
                "`newtune train CONFIG --resume`.", verdict.rank, verdict.host, verdict.what,
            )  # fmt: skip
        self._over.wait(self.interval)  # who failed may still be printing
        leave(verdict.code)

    def _guard(self) -> None:
        while not self._over.wait(self.interval):
            away = time.monotonic() - self._reached
            if away > self.limit + self.interval:
                report = self._report
                logger.error(
                    "the launcher's store has not answered a process on %s for %.0f s: the first "
                    "machine or the network is gone. The process ends%s.",
                    report.host, away, _where(report),
                )  # fmt: skip
                leave(LOST_PROCESS)


def watched_by(rank: int, size: int) -> list[int]:
    """Return whom a process watches: two of them all, the others those two."""
    watchers = sorted({0, size // 2})
    return list(range(size)) if rank in watchers else watchers


def work_done() -> float:
    """Return seconds that the main thread computed, and 10 MB that the process read or wrote."""
    if sys.platform != "linux":
        return main_thread_seconds()
    return main_thread_seconds() + bytes_moved(Path("/proc/self/io").read_text()) / 1e7


def bytes_moved(counts: str) -> int:
    """Return how much a process had read from storage and written to it, by Linux's counts."""
    named = dict(line.split(": ") for line in counts.splitlines())
    return int(named["read_bytes"]) + int(named["write_bytes"])


def main_thread_seconds() -> float:
    """Return how long the main thread has computed."""
    if sys.platform != "linux":
        return time.process_time()
    ident = threading.main_thread().ident
    assert ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


def is_of_the_network(error: BaseException) -> bool:
    """Tell whether an error may be the end of another process; gloo's have no type of their own."""
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def leave(code: int) -> None:
    """End the process at once: its main thread may wait for one that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(error: BaseException | None) -> int:
    if error is None or isinstance(error, Interrupted):
        return 0
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return USER_ERROR if isinstance(error, NewtuneError) else FAILED


def _brief(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


UNWATCHED = Watch()
