"""The rows of a hub dataset as they come over the network, from any position on."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from datasets import IterableDataset

from newtune.data.sources import NumberedRow, TableRow
from newtune.data.stream.rows import Identity, changed
from newtune.data.stream.state import Anchor
from newtune.logs import notice

ENDLESS = 1 << 62
"""More rows than any split has: stands in for a length that is unknown."""


class HubRows:
    """A hub dataset in the order of its files; `datasets` knows the way back to a row of a file.

    `open_dataset` opens it as it is at a commit, once; each reading opens the files anew, and so
    leaves a broken connection behind.
    """

    def __init__(
        self,
        name: str,
        open_dataset: Callable[[str], IterableDataset],
        *,
        commit: str,
        chosen: range = range(ENDLESS),
    ) -> None:
        self.name = name
        self.open_dataset = open_dataset
        self.commit = commit
        self.chosen = chosen
        self._dataset: IterableDataset | None = None
        self._beginning: dict[str, Any] = {}
        self._position = 0

    @property
    def identity(self) -> Identity:
        """The commit that is read, and which of its rows."""
        chosen = self.chosen
        return {"commit": self.commit, "rows": [chosen.start, chosen.stop, chosen.step]}

    def return_to(self, identity: Identity) -> None:
        """Read the commit of the checkpoint, though the dataset may have moved on since.

        Raises:
            DataError: other rows of it are chosen now.
        """
        if identity.get("rows") != self.identity["rows"]:
            raise changed(self.name, "`split`, `skip` or `shards` choose other rows")
        if identity["commit"] != self.commit:
            notice(
                f"{self.name}: is at {self.commit} by now; the run goes on with what it has read "
                f"so far, {identity['commit']}"
            )
        self.commit, self._dataset = identity["commit"], None

    def read(self, start: int, anchor: Anchor | None = None) -> Iterator[NumberedRow]:
        """Yield the chosen rows from position `start` on.

        Raises:
            DataError: the dataset cannot be opened.
        """
        start = max(start, self.chosen.start)
        if self._dataset is None:
            self._dataset = self.open_dataset(self.commit)
            self._beginning = self._dataset.state_dict()
        position, state = 0, self._beginning
        if anchor is not None and anchor["row"] <= start:
            position, state = anchor["row"], anchor["state"]
        self._dataset.load_state_dict(copy.deepcopy(dict(state)))
        self._position = position
        for row in self._dataset:
            self._position = position + 1
            if position >= self.chosen.stop:
                return
            if position >= start and position in self.chosen:
                yield NumberedRow(position + 1, TableRow(row), f"{self.name}, row {position + 1}")
            position += 1

    def anchor(self) -> Anchor | None:
        """Return where `datasets` stands in the file being read."""
        if self._dataset is None or not self._position:
            return None
        return {"row": self._position, "state": self._dataset.state_dict()}
