"""Configuration → a stream: sources opened and looked into, nothing read yet that is not needed.

1. `plans`: what the configuration says → the sources and how their rows are read
2. `rows`, `hub`: the rows of a source from any position on
3. `encoded`: rows → examples, from any position on, without end
4. `blocks`: a stretch of the stream, mixed by `mixture`, shuffled and laid out as sequences
5. `batches`: the micro-batches of a run, read ahead; `state` is the place that a checkpoint keeps
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from newtune.config.run import RunConfig
from newtune.data.build import Limits, check_ends
from newtune.data.counts import DatasetCounts
from newtune.data.layout import BatchLayout
from newtune.data.packing import PackingOptions
from newtune.data.prepare import PreparedData, packing_of, pad_id_of, prepare_held_out
from newtune.data.reading import limits_of, template_to_save
from newtune.data.stream.batches import StreamedBatches
from newtune.data.stream.blocks import BlockOptions, BlockReader
from newtune.data.stream.encoded import EncodedSource
from newtune.data.stream.plans import StreamPlan, plan_stream
from newtune.data.stream.state import Position, SourceCounts
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError
from newtune.plan.facts import ENDLESS, DataFacts
from newtune.plan.parts import StepPlan
from newtune.types import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from newtune.data.store import ExampleStore

ROWS_LOOKED_AT = 1_000
"""A source that has no trained token in its first rows is refused before the run begins."""

EXAMPLES_LOOKED_AT = 64
"""So many of a source's first examples tell how long they are."""

UNCUT = 1 << 31
"""The longest document that is joined to others before it is cut."""


@dataclass(frozen=True)
class StreamedData:
    """What is known of data that is read while the run goes on, and how to read it."""

    plans: Sequence[StreamPlan]
    blocks: BlockReader
    closed: threading.Event
    """Set when nobody reads any more."""
    train: Sequence[Example]
    """The first examples of every source."""
    held_out: PreparedData | None
    facts: DataFacts
    packing: PackingOptions
    pad_id: int
    chat_template: str | None
    """The template to save with the tokenizer; None keeps its own."""

    @property
    def evaluation(self) -> "ExampleStore | None":
        """The held-out examples, which are prepared ahead."""
        return self.held_out.evaluation if self.held_out else None

    @property
    def counts(self) -> list[DatasetCounts]:
        """What is counted before the run: the held-out datasets."""
        return self.held_out.counts if self.held_out else []

    def batches(
        self, steps: StepPlan, *, rank: int = 0, flatten: bool | None = None
    ) -> StreamedBatches:
        """Return the micro-batches of one rank over the whole run."""
        layout = BatchLayout.of(self.packing, self.pad_id, flatten=flatten)
        return StreamedBatches(self.blocks, steps, layout, closed=self.closed, rank=rank)


def prepare_stream(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> StreamedData:
    """Open the sources of a stream and look into each; prepare the held-out data.

    Raises:
        DataError: a source is missing, or its first rows hold nothing to train on.
    """
    data, sequence = config.data, config.sequence
    # a stream is mixed by tokens in any case, and the rules refuse everything else
    _ = data.dataset_mixing and data.dataset_mixing.by
    join = bool(data.pretraining_dataset and sequence.pretraining_sample_concatenation)
    plans = plan_stream(config, tokenizer)
    encoder = TextEncoder.from_tokenizer(tokenizer)
    closed = threading.Event()
    limits, _ = limits_of(config)
    if join:
        limits = Limits(UNCUT, limits.excess, limits.min_tokens)
    sources = [
        EncodedSource(plan.source, plan.reader(encoder), limits, pause=closed.wait)
        for plan in plans
    ]
    first = [example for source in sources for example in look_into(source, ROWS_LOOKED_AT)]
    packing = packing_of(config)
    in_order = packing.keep_order or not data.shuffle_merged_datasets
    packing = replace(packing, keep_order=in_order, fill_in_order=in_order or packing.fill_in_order)
    options = BlockOptions(
        examples=sequence.streaming_multipack_buffer_size,
        packing=packing,
        join=join,
        isolated=not data.pretraining_dataset or sequence.pretrain_multipack_attn,
    )
    weights = [plan.weight for plan in plans]
    held_out = prepare_held_out(config, tokenizer) if data.test_datasets else None
    return StreamedData(
        plans=plans,
        blocks=BlockReader(sources, weights, options, stopped=closed.is_set),
        closed=closed,
        train=first,
        held_out=held_out,
        facts=_facts(first, held_out, packing, join=join),
        packing=packing,
        pad_id=pad_id_of(tokenizer),
        chat_template=template_to_save(config, [plan.options for plan in plans]),
    )


def look_into(source: EncodedSource, rows: int) -> list[Example]:
    """Return the first examples of a source, which is read no further than needed.

    Raises:
        DataError: its first `rows` hold no trained token, or never train the end of a turn.
    """
    counts = SourceCounts()
    examples: list[Example] = []
    position = Position()
    while counts.rows_read < rows and not position.passes:
        row, position = source.take(position)
        if position.passes:
            break
        counts.add(row)
        examples += row.examples
        if len(examples) >= EXAMPLES_LOOKED_AT and (source.ended or not source.turns):
            break
    _require_trained(source.name, counts, examples)
    if source.turns and not source.ended:
        check_ends(source.reader.options, source.name)
    return examples[:EXAMPLES_LOOKED_AT]


def _require_trained(name: str, counts: SourceCounts, examples: Sequence[Example]) -> None:
    if any((example.labels != IGNORE_INDEX).any() for example in examples):
        return
    reasons = "; ".join(
        f"{entry.rows} rows: {reason} (first: {entry.places[0]})"
        for reason, entry in counts.dropped.items()
    )
    raise DataError(f"{name}: no trained token in the first {counts.rows_read} rows. {reasons}.")


def _facts(
    first: Sequence[Example], held_out: PreparedData | None, packing: PackingOptions, *, join: bool
) -> DataFacts:
    mean = sum(len(example.input_ids) for example in first) / len(first)
    return DataFacts(
        streamed=True,
        train_examples=0,
        eval_examples=held_out.facts.eval_examples if held_out else 0,
        tokens=0,
        trained_tokens=0,
        eval_tokens=held_out.facts.eval_tokens if held_out else 0,
        packs_in_epoch=lambda _: ENDLESS,
        packing_efficiency=None,
        sequence_tokens=packing.sequence_len if join or packing.packed else mean,
    )
