"""Processes meet at a store, also one that former processes left things in; and compare notes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from torch.distributed import HashStore, PrefixStore

from newtune.distributed import meeting as meetings
from newtune.distributed.agreement import code_digests, digests_of, require_agreement
from newtune.distributed.meeting import Meeting
from newtune.errors import SetupError

T = TypeVar("T")


def together(size: int, action: Callable[[Meeting], T]) -> list[T | str]:
    """Let threads stand for processes; what one raises is its result."""
    store = HashStore()
    store.set("newtune/came/1", "a process that is no more")

    def one(rank: int) -> T | str:
        enter = meetings._open_round
        name = enter(store, size) if rank == 0 else meetings._enter(store, rank)
        met = Meeting(rank, size, PrefixStore(name, store), f"host-{rank}")
        try:
            return action(met)
        except SetupError as error:
            return str(error)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_they_settle_what_the_first_decides() -> None:
    assert together(3, lambda met: met.settle("restarts", met.rank, max)) == [2, 2, 2]
    assert Meeting(0, 1, HashStore()).settle("restarts", 4, max) == 4


def test_one_is_the_first_to_say_something() -> None:
    assert sorted(together(3, lambda met: met.first("said"))) == [False, False, True]


def test_what_differs_is_named_with_the_processes_and_never_its_value() -> None:
    def look(met: Meeting) -> None:
        values = {"learning_rate": 0.1, "wandb_key": "s3cret" if met.rank == 1 else "other"}
        require_agreement(met, "configuration", digests_of(values), "Give the same file.")

    said = together(3, look)
    assert said[0] == said[1] == said[2]
    assert said[0] == (
        "the processes do not have the same configuration:\n"
        "  wandb_key: processes 0 on host-0, 2 on host-2 | process 1 on host-1\n"
        "Give the same file."
    )


def test_a_key_that_one_does_not_have_is_named() -> None:
    def look(met: Meeting) -> None:
        require_agreement(met, "data", {"dataset 1 (a)": "x"} if met.rank else {}, "")

    assert "dataset 1 (a): process 0 on host-0 | process 1 on host-1" in str(together(2, look)[0])


def test_who_agrees_goes_on() -> None:
    assert together(2, lambda met: require_agreement(met, "code", code_digests(), "")) == [None] * 2
    assert len(code_digests()) == 8


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meetings, "COMING_SECONDS", 0.1)
    with pytest.raises(SetupError, match=r"of 2 processes, \[1\] did not come"):
        meetings._open_round(HashStore(), 2)
