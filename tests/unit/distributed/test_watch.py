"""Who is given up, by what the processes wrote and a clock that the test turns."""

from dataclasses import replace

import pytest
from torch.distributed import HashStore

from newtune.distributed.meeting import Meeting
from newtune.distributed.watch import (
    LOST_PROCESS,
    UNWATCHED,
    Observer,
    Report,
    Verdict,
    Watch,
    bytes_moved,
    watched_by,
    work_done,
)

LIMIT = 10.0
THERE = Report("host-a", step=7, phase="collective", moves=5)


def judged(*moments: tuple[float, dict[int, Report]], silence: float = LIMIT) -> Verdict | None:
    """Return the verdict after reports that came at some moments."""
    observer = Observer(0)
    now = 0.0
    for now, reports in moments:
        for rank, report in reports.items():
            observer.note(rank, report, now)
    return observer.verdict(now, limit=LIMIT, silence=silence)


def alive(report: Report, beat: int) -> Report:
    return replace(report, beat=beat)


def test_who_moves_is_left_alone() -> None:
    later = replace(THERE, beat=2, step=8)
    assert judged((0, {0: THERE, 1: THERE}), (11, {0: later, 1: later})) is None


def test_who_writes_nothing_any_more_is_gone() -> None:
    verdict = judged((0, {0: THERE, 1: THERE}), (11, {0: alive(THERE, 2), 1: THERE}))
    what = "has not answered for 11 s; it stood at step 7 (collective)"
    assert verdict == Verdict(1, what, LOST_PROCESS, "host-a")


def test_after_an_alarm_silence_is_short() -> None:
    moments = (0, {0: THERE, 1: THERE}), (5, {0: alive(THERE, 2), 1: THERE})
    assert judged(*moments) is None
    assert judged(*moments, silence=4) is not None


def test_of_processes_that_write_the_one_behind_is_what_all_wait_for() -> None:
    behind = Report("host-b", step=7, phase="data", moves=2)
    verdict = judged((0, {0: THERE, 1: behind}), (11, {0: alive(THERE, 9), 1: alive(behind, 9)}))
    what = "has not moved for 11 s; it stands at step 7 (data)"
    assert verdict == Verdict(1, what, LOST_PROCESS, "host-b")


def test_who_waits_for_one_that_computes_is_left_alone() -> None:
    """The first process saves for long, the others stand in a collective."""
    saves = Report("host-a", step=7, phase="save", moves=3, work=1.0)
    moments = [
        (now, {0: replace(saves, beat=n, work=now + 1.0), 1: alive(THERE, n)})
        for n, now in enumerate((0.0, 6.0, 12.0, 18.0))
    ]
    assert judged(*moments) is None
    stuck = [
        (now, {0: replace(saves, beat=int(now)), 1: alive(THERE, int(now))}) for now in (0, 11)
    ]
    assert judged(*stuck) is not None


def test_who_waits_for_a_disk_works() -> None:
    counts = "rchar: 70\nwchar: 80\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1"
    assert bytes_moved(counts) == 4096 + 8192
    before = work_done()
    sum(range(10**6))
    assert work_done() > before


def test_who_has_left_is_not_missed_and_who_failed_is_named_at_once() -> None:
    left = replace(THERE, ended=0)
    later = replace(THERE, beat=2, step=8)
    assert judged((0, {0: THERE, 1: left}), (11, {0: later, 1: left})) is None
    failed = replace(THERE, host="host-b", ended=2, error="DataError: row 3")
    verdict = judged((0, {0: THERE, 1: failed}))
    assert verdict == Verdict(1, "has failed: DataError: row 3", 2, "host-b")


@pytest.mark.parametrize("size", [2, 3, 8, 1024])
def test_two_watch_all_and_are_watched(size: int) -> None:
    watchers = {0, size // 2}
    assert all(set(watched_by(rank, size)) >= watchers for rank in range(size))
    assert {rank for rank in range(size) if len(watched_by(rank, size)) > 2} <= watchers


def test_the_place_is_a_step_and_how_many_phases_it_has_had() -> None:
    watch = Watch(Meeting(0, 2, HashStore()), timeout_seconds=0)
    watch.at("data", 3)
    watch.at("forward")
    with watch.waiting():
        assert (watch._report.phase, watch._report.progress) == ("collective", (3, 3))
    assert (watch._report.phase, watch._report.progress) == ("forward", (3, 4))
    watch.at("data", 4)
    assert watch._report.progress == (4, 1)


@pytest.mark.parametrize(("size", "seconds"), [(1, 600), (2, 0)])
def test_alone_or_without_a_timeout_no_thread_runs(size: int, seconds: int) -> None:
    with Watch(Meeting(0, size, HashStore()), seconds) as watch:
        assert not watch._threads
    assert not UNWATCHED.runs
