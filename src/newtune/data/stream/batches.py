"""The micro-batches of a run over a stream, by number; read forward, ahead of the training."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset

from newtune.data.counts import DatasetCounts
from newtune.data.layout import BatchLayout
from newtune.data.stream.blocks import Block, BlockReader, Laid, Origin
from newtune.data.stream.state import SourceCounts, StreamState, token_shares
from newtune.plan.parts import StepPlan
from newtune.types import Batch


class StreamedBatches(Dataset[Batch]):
    """Micro-batches of one rank over the whole run, asked for in their order.

    Step s takes the next `rows_per_step` sequences of the stream; within the step micro-batch m of
    rank r takes `rows_per_device` of them at `(m * world_size + r)`: every rank walks the same
    stream. A thread reads the next block while this one is trained; what is read ahead counts for
    nothing until it is handed out.
    """

    def __init__(
        self,
        reader: BlockReader,
        steps: StepPlan,
        layout: BatchLayout,
        *,
        closed: threading.Event | None = None,
        rank: int = 0,
    ) -> None:
        self.reader = reader
        self.steps = steps
        self.layout = layout
        self.rank = rank
        self.closed = closed or threading.Event()
        self.names = [source.name for source in reader.sources]
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: Future[Block] | None = None
        self._block: Block | None = None
        self._first = 0
        beginning = StreamState.beginning(len(reader.sources))
        self._starts: deque[tuple[int, StreamState]] = deque([(0, beginning)])
        self._handed_out: deque[tuple[int, list[Origin]]] = deque(maxlen=steps.accumulation + 4)

    def __len__(self) -> int:
        return self.steps.total_steps * self.steps.accumulation

    def __getitem__(self, index: int) -> Batch:
        sequences = self.sequences_of(index)
        origins = [origin for laid in sequences for origin in dict.fromkeys(laid.origins)]
        self._handed_out.append((index, origins))
        return self.batch(sequences)

    def batch(self, sequences: Sequence[Laid]) -> Batch:
        """Return the tensors of some sequences."""
        return self.layout.collated([laid.examples for laid in sequences])

    def sequences_of(self, index: int) -> list[Laid]:
        """Return the sequences of micro-batch `index`; the stream does not go back to earlier ones.

        Raises:
            IndexError: the run has no such micro-batch.
            DataError: a row is wrong, or a source cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        step, part = divmod(index, self.steps.accumulation)
        rows = self.steps.rows_per_device
        first = step * self.steps.rows_per_step
        first += (part * self.steps.world_size + self.rank) * rows
        return [self._sequence(number) for number in range(first, first + rows)]

    def rows_of(self, index: int) -> list[str]:
        """Return where the examples of a micro-batch of the step under way came from."""
        origins = next((rows for number, rows in self._handed_out if number == index), [])
        return [f"{self.names[source]}, row {row}" for source, row in origins]

    def state_at(self, index: int) -> dict[str, Any]:
        """Return the place of micro-batch `index`, the first of a step, as plain values.

        Places before it are forgotten.
        """
        sequence = self._first_sequence(index)
        while len(self._starts) > 1 and self._starts[1][0] <= sequence:
            self._starts.popleft()
        first, start = self._starts[0]
        sources = [dict(source.rows.identity) for source in self.reader.sources]
        return {"first": first, "sources": sources, "place": start.as_json()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_at` gave.

        Raises:
            DataError: the data is not that of the checkpoint.
        """
        for source, identity in zip(self.reader.sources, state["sources"], strict=True):
            source.return_to(identity)
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

    def dataset_counts(self, index: int) -> list[DatasetCounts]:
        """Return what `counts_at` does, in the form that prepared data has, by source."""
        counts = self.counts_at(index)
        return [entry.as_counts(name) for name, entry in zip(self.names, counts, strict=True)]

    def read_at_end(self) -> list[dict[str, Any]]:
        """Return what was read for the whole run, per source, for data.json."""
        shares = token_shares(self.counts_at(len(self)))
        return [
            {**asdict(counts), "token_share": round(share, 4)}
            for counts, share in zip(self.dataset_counts(len(self)), shares, strict=True)
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
        return self._thread.submit(self.reader.read, start)

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
