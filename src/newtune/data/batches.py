"""The whole run's micro-batches by number, so that a run can start at any of them."""

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from newtune.data.layout import BatchLayout
from newtune.data.mixing import training_sequences
from newtune.data.packing import Indices, eval_sequences
from newtune.plan.parts import StepPlan
from newtune.types import Batch

if TYPE_CHECKING:
    from newtune.data.prepare import PreparedData
    from newtune.data.stream.prepare import StreamedData


class TrainBatches(Dataset[Batch]):
    """Micro-batches of one rank over the whole run; item i is the same whatever came before.

    Step s of an epoch takes `rows_per_step` sequences of that epoch's order; within the step
    micro-batch m of rank r takes the next `rows_per_device` at `(m * world_size + r)`. Where an
    epoch's sequences end, short batches and fillers complete its last step.
    """

    def __init__(
        self,
        data: "PreparedData",
        steps: StepPlan,
        *,
        rank: int = 0,
        flatten: bool | None = None,
    ) -> None:
        self.store = data.train
        self.names = [counts.name for counts in data.counts]
        self.packing = data.packing
        self.mixture = data.mixture
        self.steps = steps
        self.rank = rank
        self.layout = BatchLayout.of(data.packing, data.pad_id, flatten=flatten)
        self._epoch_ends = list(accumulate(steps.steps_in_epoch))
        self._sequences: tuple[int, list[Indices]] = (-1, [])

    def __len__(self) -> int:
        return self.steps.total_steps * self.steps.accumulation

    def __getitem__(self, index: int) -> Batch:
        return self.layout.batch(self.store, self.sequences_of(index))

    def rows_of(self, index: int) -> list[str]:
        """Return where the examples of micro-batch `index` came from: `path, row 3`."""
        origins = map(self.store.origin, self.examples_of(index))
        return [f"{self.names[dataset]}, row {row}" for dataset, row in origins]

    def examples_of(self, index: int) -> list[int]:
        """Return the examples of micro-batch `index`, as places in the store."""
        return [int(place) for sequence in self.sequences_of(index) for place in sequence]

    def sequences_of(self, index: int) -> list[Indices]:
        """Return the sequences of micro-batch `index`; none for a filler.

        Raises:
            IndexError: the run has no such micro-batch.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        step, part = divmod(index, self.steps.accumulation)
        epoch = bisect_right(self._epoch_ends, step)
        step_of_epoch = step - (self._epoch_ends[epoch - 1] if epoch else 0)
        rows = self.steps.rows_per_device
        start = step_of_epoch * self.steps.rows_per_step
        start += (part * self.steps.world_size + self.rank) * rows
        return self._sequences_of_epoch(epoch)[start : start + rows]

    def _sequences_of_epoch(self, epoch: int) -> list[Indices]:
        if self._sequences[0] != epoch:
            sequences = training_sequences(self.store.lengths, self.packing, self.mixture, epoch)
            self._sequences = (epoch, sequences)
        return self._sequences[1]


class EvalBatches(Dataset[Batch]):
    """The held-out data of one rank as batches of `rows_per_device` sequences, always the same.

    Every rank has the same number of batches; fillers complete the last ones.
    """

    def __init__(
        self,
        data: "PreparedData | StreamedData",
        rows_per_device: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        flatten: bool | None = None,
    ) -> None:
        if data.evaluation is None:
            raise ValueError("there is no held-out data")
        self.store = data.evaluation
        self.rows_per_device = rows_per_device
        self.rank = rank
        self.world_size = world_size
        layout = BatchLayout.of(data.packing, data.pad_id, flatten=flatten)
        if layout.pad_to and data.packing.eval_sequence_len:
            layout = replace(layout, pad_to=data.packing.eval_sequence_len)
        self.layout = layout
        self.sequences = eval_sequences(self.store.lengths, data.packing)

    def __len__(self) -> int:
        return -(-len(self.sequences) // (self.rows_per_device * self.world_size))

    def __getitem__(self, index: int) -> Batch:
        return self.layout.batch(self.store, self.sequences_of(index))

    def examples_of(self, index: int) -> list[int]:
        """Return the examples of batch `index`, as places in the store."""
        return [int(place) for sequence in self.sequences_of(index) for place in sequence]

    def sequences_of(self, index: int) -> list[Indices]:
        """Return the sequences of batch `index`; none for a filler.

        Raises:
            IndexError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = (index * self.world_size + self.rank) * self.rows_per_device
        return self.sequences[start : start + self.rows_per_device]
