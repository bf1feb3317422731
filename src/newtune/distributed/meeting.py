"""The store at which the processes of a launch meet: before, beside and after their group.

Started again, a launch may find what its former processes left there; so a round has a name that
the first process chooses, and everything of the round lies under it.
"""

import hashlib
import json
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import (  # type: ignore[attr-defined]  # public by their documentation
    DistStoreError,
    HashStore,
    PrefixStore,
    Store,
)
from torch.distributed.rendezvous import rendezvous

from newtune.distributed.world import World, restarts
from newtune.errors import SetupError

T = TypeVar("T")

COMING_SECONDS = 900
"""How long processes wait for each other at the start."""
ASKING_SECONDS = 20
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Meeting:
    """The processes of one round, and the store that they share."""

    rank: int
    size: int
    store: Store = field(repr=False)
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def join(cls, world: World) -> "Meeting":
        """Meet the other processes; all must join. Alone, there is nobody to wait for.

        Raises:
            SetupError: some did not come.
        """
        if world.size == 1:
            return cls(0, 1, HashStore())
        store = connect(COMING_SECONDS)
        name = _open_round(store, world.size) if world.is_main else _enter(store, world.rank)
        return cls(world.rank, world.size, PrefixStore(f"newtune/{name}", store))

    def again(self) -> "Meeting":
        """Return the same meeting by a connection of its own, for another thread."""
        return Meeting(self.rank, self.size, self.store.clone(), self.host)  # type: ignore[attr-defined]

    def settle(self, name: str, mine: Any, decide: Callable[[list[Any]], T]) -> T:
        """Return what the first process decides by everyone's plain data; all must ask.

        It alone reads them all, so that a thousand processes do not read a million.
        """
        self.store.set(f"{name}/{self.rank}", json.dumps(mine))
        if self.rank == 0:
            keys = [f"{name}/{rank}" for rank in range(self.size)]
            decided = decide([json.loads(self.store.get(key)) for key in keys])
            self.store.set(f"{name}/decided", json.dumps(decided))
        result: T = json.loads(self.store.get(f"{name}/decided"))
        return result

    def from_first(self, name: str, mine: T) -> T:
        """Return the first process's plain data, however long it takes; all must ask."""
        if self.rank == 0:
            self.store.set(name, json.dumps(mine))
        self.store.wait([name], timedelta(days=1))
        result: T = json.loads(self.store.get(name))
        return result

    def first(self, name: str) -> bool:
        """Tell whether this process is the first that asks for the name."""
        return self.store.add(f"first/{name}", 1) == 1


def connect(seconds: float) -> Store:
    """Return the launcher's store (torchrun's agent holds it, or else the first process)."""
    store: Store = next(iter(rendezvous("env://", timeout=timedelta(seconds=seconds))))[0]
    return store


def _open_round(store: Store, size: int) -> str:
    """Answer every process that comes, until each has heard an answer of this round."""
    name = uuid.uuid4().hex
    missing, answered = set(range(1, size)), set()
    until = time.monotonic() + COMING_SECONDS
    while missing:
        for rank in sorted(missing):
            if store.check([f"newtune/{name}/joined/{rank}"]):
                missing.discard(rank)
            elif store.check([f"newtune/came/{rank}"]):
                came = store.get(f"newtune/came/{rank}").decode()
                if came not in answered:  # it may be of a process that is no more
                    store.set(f"newtune/answer/{came}", name)
                    answered.add(came)
        if time.monotonic() > until:
            raise SetupError(
                f"of {size} processes, {sorted(missing)} did not come within {COMING_SECONDS} s: "
                "are all machines started, with the same command?"
            )
        time.sleep(LOOK_SECONDS)
    return name


def _enter(store: Store, rank: int) -> str:
    own = uuid.uuid4().hex
    store.set(f"newtune/came/{rank}", own)
    try:
        name = store.get(f"newtune/answer/{own}").decode()
    except DistStoreError as error:
        raise SetupError(f"process 0 did not answer process {rank}: {error}") from error
    store.set(f"newtune/{name}/joined/{rank}", "")
    return name


def first_to_say(text: str) -> bool:
    """Tell whether this process is the first on its machine to print the text.

    Where nobody can be asked, each prints for itself.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        store = connect(ASKING_SECONDS)
        return store.add(f"newtune/said/{restarts()}/{socket.gethostname()}/{digest}", 1) == 1
    except (DistStoreError, RuntimeError):
        return True
