"""A run that is prepared and not started: its micro-batches, counts and choices, to look at."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from newtune.data.inspect.batches import BatchView, origins_in_stream, origins_of, view_batch
from newtune.data.inspect.rows import RowReading
from newtune.data.inspect.token_text import TokenTexts
from newtune.data.reading import limits_of, plan_datasets
from newtune.data.stream.batches import StreamedBatches
from newtune.data.stream.plans import plan_stream
from newtune.data.stream.prepare import StreamedData
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError
from newtune.prepare import training_data

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from newtune.config.run import RunConfig
    from newtune.data.counts import DatasetCounts
    from newtune.data.inspect.batches import Batches
    from newtune.data.inspect.rows import ReadableDataset
    from newtune.prepare import Prepared


class ShownRun:
    """The micro-batches of a run as the trainer gets them: of training, or of an evaluation.

    Those of a stream are read forward only, and what is counted is what was read for them.
    """

    def __init__(self, config: "RunConfig", prepared: "Prepared", *, evaluation: bool) -> None:
        self.config, self.prepared, self.evaluation = config, prepared, evaluation
        self.feed = training_data(prepared)
        batches = self.feed.evaluation if evaluation else self.feed.train
        if batches is None:
            raise DataError("No rows are held out: give `test_datasets` or `val_set_size`.")
        self.batches = batches
        self.reading = row_reading(config, prepared.tokenizer)
        self._read = 0

    def close(self) -> None:
        """Stop what reads ahead."""
        self.feed.close()

    @property
    def unit(self) -> str:
        """What stands in one sequence."""
        packing = self.prepared.data.packing
        return "pack" if (packing.eval_packed if self.evaluation else packing.packed) else "example"

    @property
    def counts(self) -> list["DatasetCounts"]:
        """What was counted of every dataset; of a stream, for the micro-batches read so far."""
        ahead = self.prepared.data.counts
        if not isinstance(self.feed.train, StreamedBatches):
            return ahead
        steps = -(-self._read // self.feed.train.steps.accumulation)
        return [*self.feed.train.dataset_counts(steps * self.feed.train.steps.accumulation), *ahead]

    def lengths(self, views: Sequence[BatchView]) -> "NDArray[np.int32]":
        """Return the tokens of each example; of a stream, of those in the views."""
        data = self.prepared.data
        if self.evaluation and data.evaluation:
            return data.evaluation.lengths
        if not isinstance(data, StreamedData):
            return data.train.lengths
        return np.array([len(part.tokens) for view in views for part in view.examples], np.int32)

    def index_of(self, batch: int | None) -> int:
        """Return the place of micro-batch `batch`, which counts from 1; the first for None."""
        if batch is not None and batch > len(self.batches):
            raise DataError(f"There is no micro-batch {batch}: the run has {len(self.batches):,}.")
        return batch - 1 if batch else 0

    def view(self, number: int) -> BatchView:
        """Read micro-batch `number` (from 0) back from its tensors."""
        names = [plan.name for plan in self.reading.datasets]
        if isinstance(self.batches, StreamedBatches):
            sequences = self.batches.sequences_of(number)
            packs, batch = origins_in_stream(sequences, names), self.batches.batch(sequences)
            self._read = max(self._read, number + 1)
        else:
            packs = origins_of(cast("Batches", self.batches), number, names)
            batch = self.batches[number]
        return view_batch(batch, number, packs, self.reading.texts, self.reading.turns)

    def words(self, number: int) -> str:
        """Say where in the run micro-batch `number` stands."""
        total = len(self.batches)
        if self.evaluation:
            return f"Evaluation batch {number + 1:,} of {total:,}"
        steps = self.prepared.plan.training.steps
        step = f"step {number // steps.accumulation + 1:,} of {steps.total_steps:,}"
        return f"Micro-batch {number + 1:,} of {total:,}, {step}"

    def as_dict(self, views: Sequence[BatchView]) -> dict[str, object]:
        """Return what `--json` prints."""
        from newtune.data.inspect.plain import batch_as_dict, counts_as_dict

        return {
            "data": "eval" if self.evaluation else "train",
            "batches_in_all": len(self.batches),
            "batches": [batch_as_dict(view) for view in views],
            "datasets": [counts_as_dict(count) for count in self.counts],
            "packing_efficiency": self.prepared.data.facts.packing_efficiency,
            "choices": dict(self.choices()),
        }

    def figures(self) -> Iterator[tuple[str, str]]:
        """Yield the numbers to see first: (name, value)."""
        facts = self.prepared.data.facts
        if facts.streamed:
            yield "examples to train", "a stream"
        else:
            yield "examples to train", f"{facts.train_examples:,}"
        yield "held out", f"{facts.eval_examples:,}"
        if not facts.streamed:
            yield "tokens", f"{facts.tokens:,}"
            yield "trained tokens", f"{facts.trained_tokens / max(facts.tokens, 1):.1%}"
        if facts.packing_efficiency is not None:
            yield "packs an epoch", f"{facts.packs_in_epoch(0):,}"
            yield "packs are full to", f"{facts.packing_efficiency:.1%}"
        yield "steps", f"{self.prepared.plan.training.steps.total_steps:,}"

    def choices(self) -> Iterator[tuple[str, str]]:
        """Yield what decides about masks and packs: (key, value in words)."""
        data = self.config.data
        entries = [
            (f"{name}.{number}", entry)
            for name in ("pretraining_dataset", "datasets", "test_datasets")
            for number, entry in enumerate(getattr(data, name))
        ]
        for (key, entry), plan in zip(entries, self.reading.datasets, strict=True):
            options = plan.options
            form = entry.type if isinstance(entry.type, str) else "a prompt of one's own"
            unnamed = "completion" if key.startswith("pre") else "none (rows of tokens)"
            said = [f"{plan.name}, type {form if entry.type else unnamed}"]
            if options.template is not None:
                name = entry.chat_template or data.chat_template or "tokenizer_default"
                said += [f"chat_template {name}"]
                said += [f"roles_to_train {', '.join(options.roles_to_train) or 'none'}"]
                said += [
                    f"train_on_eos {options.train_on_eos}, train_on_eot {options.train_on_eot}"
                ]
            said += [f"train_on_inputs {'true' if options.train_on_inputs else 'false'}"]
            yield key, " · ".join(said)
        packing, plan_ = self.prepared.data.packing, self.prepared.plan
        yield "sequence_len", f"{packing.sequence_len:,} tokens"
        yield "sample_packing", "true" if packing.packed else "false"
        layout = "laid end to end" if plan_.training.flatten else "one under the other, padded"
        steps = plan_.training.steps
        yield "micro_batch_size", f"{steps.rows_per_device:,}, sequences {layout}"
        yield "gradient_accumulation_steps", f"{steps.accumulation:,}"
        isolation = "stays inside each example: positions restart at 0, and no mask is needed"
        yield "attention", f"{plan_.model.attention}; it {isolation}"


def row_reading(config: "RunConfig", tokenizer: "PreTrainedTokenizerBase") -> RowReading:
    """Return what reads single rows of every dataset, the held-out ones last."""
    datasets: list[ReadableDataset] = []
    if config.is_streamed:
        datasets += plan_stream(config, tokenizer)
    if not config.is_streamed or config.data.test_datasets:
        datasets += plan_datasets(config, tokenizer, held_out_only=config.is_streamed)
    return RowReading(
        datasets,
        TextEncoder.from_tokenizer(tokenizer),
        limits_of(config),
        TokenTexts(tokenizer),
    )
