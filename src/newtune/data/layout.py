"""How chosen sequences become a batch: padded or in one row, to which length."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from newtune.data.collate import collate
from newtune.data.packing import Indices, PackingOptions
from newtune.data.store import ExampleStore
from newtune.types import IGNORE_INDEX, Batch, Example


@dataclass(frozen=True)
class BatchLayout:
    """How sequences become a batch."""

    pad_id: int
    pad_to: int | None
    multiple_of: int | None
    flatten: bool

    @classmethod
    def of(
        cls, options: PackingOptions, pad_id: int, *, flatten: bool | None = None
    ) -> "BatchLayout":
        """Return the layout that the packing options ask for; `flatten` overrides theirs."""
        pad_to = options.sequence_len if options.pad_to_sequence_len else None
        flat = options.flatten if flatten is None else flatten
        return cls(pad_id, pad_to, options.pad_to_multiple_of, flat)

    def batch(self, store: ExampleStore, sequences: Sequence[Indices]) -> Batch:
        """Return the batch of some sequences, or a filler when there are none.

        A filler is one short example without a trained token: it adds nothing to a loss, but
        every rank takes part in the step.
        """
        packs = [[store[int(index)] for index in sequence] for sequence in sequences]
        return self.collated(packs or [[self._filler()]])

    def collated(self, packs: Sequence[Sequence[Example]]) -> Batch:
        """Return the batch of some packs."""
        return collate(
            packs,
            pad_id=self.pad_id,
            pad_to=self.pad_to,
            flatten=self.flatten,
            multiple_of=self.multiple_of,
        )

    def _filler(self) -> Example:
        ids = np.full(2, self.pad_id, dtype=np.int32)
        return Example(ids, np.full(2, IGNORE_INDEX, dtype=np.int32))
