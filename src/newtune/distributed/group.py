"""What the processes of a run tell each other: sums, the greatest value, what the first one did.

Alone, every method gives back what it was given, and torch.distributed is not touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from newtune.distributed.meeting import Meeting
from newtune.distributed.watch import UNWATCHED, Watch
from newtune.distributed.world import World
from newtune.errors import FailedElsewhere

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that train one model together. Every process must call the same methods."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    """Where numbers lie while they are exchanged: nccl knows GPUs only."""
    watch: Watch = field(default=UNWATCHED, repr=False, compare=False)
    """What is told where this process stands."""
    sharers: int = 1
    """Neighbours that compute the same rows together: what they count is counted once."""
    twins: int = 1
    """Of the sharers, those that compute the same tokens: what they draw at random is the same."""

    @classmethod
    def of(cls, world: World, watch: Watch = UNWATCHED) -> "Group":
        """Return the group of all processes."""
        return cls(world.rank, world.size, world.device, watch)

    def form(self, meeting: Meeting, *, backend: str | None, timeout_seconds: float) -> None:
        """Make torch's process group, unless there is one; accelerate finds it."""
        if self.size == 1 or distributed.is_initialized():
            return
        distributed.init_process_group(
            backend or ("gloo" if self.device == "cpu" else "nccl"),
            store=meeting.again().store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout_seconds),
        )

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Return which part of a step's rows this process computes."""
        return self.rank // self.sharers

    @property
    def data_size(self) -> int:
        """Return into how many parts a step's rows are dealt out."""
        return self.size // self.sharers

    @property
    def draw(self) -> int:
        """Return what sets this process's random numbers apart from those of others."""
        return self.rank // self.twins

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        """Return the numbers of every process, by rank; all must give as many."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        everyones = [torch.empty_like(mine) for _ in range(self.size)]
        with self.watch.waiting():
            distributed.all_gather(everyones, mine)
            return [part.tolist() for part in everyones]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all rows, added in the order of ranks, the same on each process."""
        once = self.numbers(values)[:: self.sharers]
        return [sum(column) for column in zip(*once, strict=True)]

    def greatest(self, value: int) -> int:
        """Return the greatest value of any process."""
        return int(max(part[0] for part in self.numbers([value])))

    def gather(self, value: T) -> list[T]:
        """Return every process's object, by rank."""
        if self.size == 1:
            return [value]
        everyones: list[Any] = [None] * self.size
        with self.watch.waiting():
            distributed.all_gather_object(everyones, value)
        return everyones

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Run an action on the first process while the others wait; they get None.

        Raises:
            FailedElsewhere: on the others, when the action failed on the first.
        """
        if self.size == 1:
            return action()
        if not self.is_main:
            self._wait_for_main()
            return None
        said: list[str | None] = [None]
        try:
            return action()
        except Exception as error:
            said = [f"{type(error).__name__}: {error}"]
            raise
        finally:
            self._tell(said)

    def _wait_for_main(self) -> None:
        said: list[str | None] = [None]
        self._tell(said)
        if said[0] is not None:
            raise FailedElsewhere(f"process 0 failed, so process {self.rank} ends: {said[0]}")

    def _tell(self, said: list[str | None]) -> None:
        with self.watch.waiting():
            distributed.broadcast_object_list(said, src=0)


ALONE = Group()


def leave_group() -> None:
    """End the process group, if there is one: a process that exits with a live one may abort."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
