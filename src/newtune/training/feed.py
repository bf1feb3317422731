"""What a run is fed with: ready micro-batches in order, and the held-out data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from newtune.types import Batch, Example


class Batches(Protocol):
    """Ready micro-batches in order."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> Batch:
        """Return micro-batch `index`."""
        ...


class TrainBatches(Batches, Protocol):
    """The micro-batches of the whole run."""

    def rows_of(self, index: int) -> Sequence[str]:
        """Return where the examples of micro-batch `index` came from: `path, row 3`."""
        ...


@runtime_checkable
class Streamed(TrainBatches, Protocol):
    """Micro-batches that are made while the run goes on, from places that a checkpoint keeps."""

    def state_at(self, index: int) -> dict[str, Any]:
        """Return the place of micro-batch `index`, the first of a step, as JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_at` gave."""
        ...

    def report_at(self, index: int) -> Mapping[str, float]:
        """Return what was read for the micro-batches before `index`, the first of a step."""
        ...

    def close(self) -> None:
        """Stop reading ahead."""
        ...


class Examples(Protocol):
    """The held-out examples, one by one."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Return example `index`."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What a run is fed with."""

    train: TrainBatches
    evaluation: Batches | None = None
    eval_examples: Examples = ()
    """For `eval_generate`."""

    def close(self) -> None:
        """Stop what reads ahead of the training."""
        if isinstance(self.train, Streamed):
            self.train.close()


def loader(batches: Batches, arguments: TrainingArguments) -> DataLoader[Batch]:
    """Return the batches one by one in their order; it is the index that is skipped on resuming."""
    return DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=1,
        shuffle=False,
        collate_fn=_the_only_one,
        num_workers=arguments.dataloader_num_workers,
        prefetch_factor=arguments.dataloader_prefetch_factor,
        pin_memory=arguments.dataloader_pin_memory,
        # a generator of its own, so that making an iterator leaves the run's randomness alone
        generator=torch.Generator().manual_seed(arguments.seed),
    )


def _the_only_one(batches: list[Batch]) -> Batch:
    return batches[0]
