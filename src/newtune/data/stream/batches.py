"""The micro-batches of a run over a stream, by number; read forward, ahead of the training."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset

from newtune.data.batches import BatchLayout
from newtune.data.stream.blocks import Block, Laid
from newtune.data.stream.state import SourceCounts, StreamState, token_shares
from newtune.errors import DataError
from newtune.plan.parts import StepPlan
from newtune.types import Batch

ReadBlock = Callable[[StreamState], Block]


class StreamedBatches(Dataset[Batch]):
    """Micro-batches of one rank over the whole run, asked for in their order.

    Step s takes the next `rows_per_step` sequences of the stream; within the step micro-batch m of
    rank r takes `rows_per_device` of them at `(m * world_size + r)`: every rank walks the same
    stream. A thread reads the next block while this one is trained; what is read ahead counts for
    nothing until it is handed out.
    """

    def __init__(
        self,
        read_block: ReadBlock,
        start: StreamState,
        steps: StepPlan,
        layout: BatchLayout,
        *,
        names: Sequence[str],
        fingerprint: str = "",
        closed: threading.Event | None = None,
        rank: int = 0,
    ) -> None:
        self.read_block = read_block
        self.steps = steps
        self.layout = layout
        self.names = names
        self.fingerprint = fingerprint
        self.rank = rank
        self.closed = closed or threading.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: Future[Block] | None = None
        self._block: Block | None = None
        self._first = 0
        self._starts: deque[tuple[int, StreamState]] = deque([(0, start)])
        self._handed_out: deque[tuple[int, list[str]]] = deque(maxlen=steps.accumulation + 4)

    def __len__(self) -> int:
        return self.steps.total_steps * self.steps.accumulation

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        step, part = divmod(index, self.steps.accumulation)
        rows = self.steps.rows_per_device
        first = step * self.steps.rows_per_step
        first += (part * self.steps.world_size + self.rank) * rows
        sequences = [self._sequence(number) for number in range(first, first + rows)]
        self._handed_out.append((index, [self._places(entry) for entry in sequences]))
        return self.layout.collated([entry.examples for entry in sequences])

    def rows_of(self, index: int) -> list[str]:
        """Return where the examples of a micro-batch of the step under way came from."""
        return next((places for number, places in self._handed_out if number == index), [])

    def state_at(self, index: int) -> dict[str, Any]:
        """Return the place of micro-batch `index`, the first of a step, as plain values.

        Places before it are forgotten.
        """
        sequence = self._first_sequence(index)
        while len(self._starts) > 1 and self._starts[1][0] <= sequence:
            self._starts.popleft()
        first, start = self._starts[0]
        return {"first": first, "fingerprint": self.fingerprint, "place": start.as_json()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_at` gave.

        Raises:
            DataError: the data is not that of the checkpoint.
        """
        if state["fingerprint"] != self.fingerprint:
            raise DataError(
                f"{', '.join(self.names)}: not the data that the checkpoint's run has read (names, "
                "sizes or beginnings of files differ). A place in it means nothing here: bring "
                "the data back, or start a new run."
            )
        self._drop_ahead()
        self._block, self._first = None, state["first"]
        self._starts = deque([(state["first"], StreamState.from_json(state["place"]))])

    def counts_at(self, index: int) -> tuple[SourceCounts, ...]:
        """Return what was read for the micro-batches before `index`, the first of a step.

        That is everything in the blocks begun: a few rows more than were trained.
        """
        if self._block is None or index == 0:
            return self._starts[0][1].counts
        last = self._first_sequence(index) - 1
        # the block of a sequence ends where the next one begins
        after = [start for first, start in self._starts if first > last]
        return after[0].counts if after else self._block.end.counts

    def read_at_end(self) -> list[dict[str, Any]]:
        """Return what was read for the whole run, per source, for data.json."""
        counts = self.counts_at(len(self))
        shares = token_shares(counts)
        return [
            {**asdict(entry.as_counts(name)), "token_share": round(share, 4)}
            for name, entry, share in zip(self.names, counts, shares, strict=True)
        ]

    def report_at(self, index: int) -> dict[str, float]:
        """Return the rows read and left out for the micro-batches before `index`."""
        counts = self.counts_at(index)
        return {
            "rows_read": sum(entry.rows_read for entry in counts),
            "rows_dropped": sum(entry.rows_dropped for entry in counts),
        }

    def close(self) -> None:
        """Stop reading ahead."""
        self.closed.set()
        self._drop_ahead()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None

    def _first_sequence(self, index: int) -> int:
        return index // self.steps.accumulation * self.steps.rows_per_step

    def _places(self, laid: Laid) -> str:
        rows = [
            f"{self.names[source]}, row {row}" if source >= 0 else "the end of an earlier row"
            for source, row in dict.fromkeys(laid.origins)
        ]
        return "; ".join(rows)

    def _sequence(self, number: int) -> Laid:
        if number < self._first:
            raise RuntimeError(f"sequence {number} lies behind the stream's place, {self._first}")
        while self._block is None or number >= self._first + len(self._block.sequences):
            self._advance()
        return self._block.sequences[number - self._first]

    def _advance(self) -> None:
        """Make the next block the one in use, and have the one after it read."""
        if self._block is None:
            block = self._submit(self._starts[-1][1]).result()
        else:
            self._first += len(self._block.sequences)
            assert self._ahead is not None
            block = self._ahead.result()
            self._starts.append((self._first, block.start))
        self._block = block
        self._ahead = self._submit(block.end)

    def _submit(self, start: StreamState) -> Future[Block]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="newtune-stream")
        return self._thread.submit(self.read_block, start)

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
