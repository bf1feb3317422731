"""The rows of a hub dataset as they come over the network, from any position on."""

from collections.abc import Callable, Iterator

from datasets import IterableDataset

from newtune.data.sources import NumberedRow
from newtune.data.stream.rows import Identity, changed
from newtune.data.stream.state import Anchor
from newtune.logs import notice

ENDLESS = 1 << 62
"""More rows than any split has: stands in for a length that is unknown."""


class HubRows:
    """A hub dataset in the order of its files; `datasets` knows the way back to a row of a file.

    `open_dataset` opens it as it is at a commit, and is called anew for every reading, so that a
    broken connection is left behind.
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
        self._current: IterableDataset | None = None
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
        self.commit = identity["commit"]

    def read(self, start: int, anchor: Anchor | None = None) -> Iterator[NumberedRow]:
        """Yield the chosen rows from position `start` on.

        Raises:
            DataError: the dataset cannot be opened.
        """
        start = max(start, self.chosen.start)
        dataset = self.open_dataset(self.commit)
        position = 0
        if anchor is not None and anchor["row"] <= start:
            dataset.load_state_dict(dict(anchor["state"]))
            position = anchor["row"]
        self._current, self._position = dataset, position
        for row in dataset:
            self._position = position + 1
            if position >= self.chosen.stop:
                return
            if position >= start and position in self.chosen:
                yield NumberedRow(position + 1, row, f"{self.name}, row {position + 1}")
            position += 1

    def anchor(self) -> Anchor | None:
        """Return where `datasets` stands in the file being read."""
        if self._current is None or not self._position:
            return None
        return {"row": self._position, "state": self._current.state_dict()}
