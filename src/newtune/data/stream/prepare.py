"""Configuration → a stream: sources opened and looked into, nothing read yet that is not needed."""

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from newtune.config.data import DatasetSection
from newtune.config.rules.streams import TEXT_TYPES
from newtune.config.run import RunConfig
from newtune.data.batches import BatchLayout
from newtune.data.build import Limits, check_ends
from newtune.data.counts import DatasetCounts
from newtune.data.formats import FormatOptions, PromptMapping
from newtune.data.hub import open_hub_stream
from newtune.data.packing import PackingOptions
from newtune.data.prepare import PreparedData, packing_of, pad_id_of, prepare_held_out
from newtune.data.reading import (
    DEFAULT_FOLDER,
    checked_reader,
    format_options,
    limits_of,
    source_of,
    template_to_save,
    type_of,
)
from newtune.data.sources import Source, open_source, parse_split
from newtune.data.sources.find import find_files
from newtune.data.stream.batches import StreamedBatches
from newtune.data.stream.blocks import BlockOptions, BlockReader, Laid
from newtune.data.stream.encoded import EncodedSource
from newtune.data.stream.hub import HubRows
from newtune.data.stream.rows import ENDLESS, LocalRows, RowSource
from newtune.data.stream.state import Position, SourceCounts, StreamState
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError
from newtune.plan.parts import DataFacts, StepPlan
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

    names: Sequence[str]
    """The path of each source."""
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

    @property
    def fingerprint(self) -> str:
        """Changes when a source's content or the choice of its rows does."""
        parts = [f"{source.name}:{source.rows.fingerprint}" for source in self.blocks.sources]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def beginning(self) -> StreamState:
        """Return the place before the first row."""
        return StreamState.beginning(len(self.names))

    def batches(
        self, steps: StepPlan, *, rank: int = 0, flatten: bool | None = None
    ) -> StreamedBatches:
        """Return the micro-batches of one rank over the whole run."""
        return StreamedBatches(
            self.blocks.read,
            self.beginning(),
            steps,
            BatchLayout.of(self.packing, self.pad_id, flatten=flatten),
            names=self.names,
            fingerprint=self.fingerprint,
            closed=self.closed,
            rank=rank,
        )

    def first_sequences(self, count: int) -> list[Laid]:
        """Return the first sequences of the run, as they are trained."""
        sequences: list[Laid] = []
        place = self.beginning()
        while len(sequences) < count:
            block = self.blocks.read(place)
            sequences += block.sequences
            place = block.end
        return sequences[:count]


def prepare_stream(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> StreamedData:
    """Open the sources of a stream and look into each; prepare the held-out data.

    Raises:
        DataError: a source is missing, or its first rows hold nothing to train on.
    """
    data, sequence = config.data, config.sequence
    # a stream is mixed by tokens in any case, and the rules refuse everything else
    _ = data.dataset_mixing and data.dataset_mixing.by
    join = bool(data.pretraining_dataset and sequence.pretraining_sample_concatenation)
    plans = [
        _plan_source(entry, config, tokenizer, text=text)
        for entries, text in ((data.pretraining_dataset, True), (data.datasets, False))
        for entry in entries
    ]
    encoder = TextEncoder.from_tokenizer(tokenizer)
    readers = [checked_reader(plan.name, plan.type, plan.options, encoder) for plan in plans]
    closed = threading.Event()
    limits, _ = limits_of(config)
    if join:
        limits = Limits(UNCUT, limits.excess, limits.min_tokens)
    sources = [
        EncodedSource(open_rows(plan.source, skip=plan.skip), reader, limits, pause=closed.wait)
        for plan, reader in zip(plans, readers, strict=True)
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
    held_out = prepare_held_out(config, tokenizer) if data.test_datasets else None
    return StreamedData(
        names=[plan.name for plan in plans],
        blocks=BlockReader(
            sources, [plan.weight for plan in plans], options, stopped=closed.is_set
        ),
        closed=closed,
        train=first,
        held_out=held_out,
        facts=_facts(first, held_out, packing, join=join),
        packing=packing,
        pad_id=pad_id_of(tokenizer),
        chat_template=template_to_save(config, [plan.options for plan in plans]),
    )


def peek(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", count: int
) -> tuple[list[Laid], Sequence[str]]:
    """Return the first sequences of a streamed run, as they are trained, and the sources' names.

    Raises:
        DataError: a source is missing, or its first rows hold nothing to train on.
    """
    data = prepare_stream(config, tokenizer)
    return data.first_sequences(count), data.names


@dataclass(frozen=True)
class _SourcePlan:
    """One source and how its rows are read."""

    source: Source
    name: str
    type: str | PromptMapping | None
    options: FormatOptions
    skip: int
    weight: float


def _plan_source(
    entry: DatasetSection, config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, text: bool
) -> _SourcePlan:
    base_folder = config.source.parent if config.source else Path()
    cache_folder = Path(config.data.dataset_prepared_path or DEFAULT_FOLDER) / "sources"
    options = format_options(entry, config, tokenizer, base_folder)
    type_ = type_of(entry)
    if text and type_ in TEXT_TYPES:
        type_ = "completion"
    if type_ == "completion":
        options = replace(options, text_field=entry.text_column or options.text_field)
    return _SourcePlan(
        source_of(entry, base_folder, cache_folder),
        entry.path,
        type_,
        options,
        entry.skip or 0,
        1.0 if entry.weight is None else entry.weight,
    )


def open_rows(source: Source, *, skip: int = 0) -> RowSource:
    """Find a source; return its rows, of which none is read yet.

    `skip` leaves out the first rows of what `split` chooses.

    Raises:
        DataError: the source is missing, or of unknown kind; a slice chooses none of its rows.
    """
    split, choose = parse_split(source.split)
    if find_files(source, split) is not None:
        rows = LocalRows(source.path, open_source(source), skip=skip)
        _require_rows(rows.chosen, source, skip)
        return rows
    if re.search(r"\[.*[-%].*\]", source.split):
        raise DataError(
            f"{source.path}: `split: {source.split}` needs the number of rows, which a streamed "
            "dataset does not tell. Write `train[100:500]`, or `skip`."
        )
    chosen = choose(ENDLESS)[skip:]
    if source.shards:
        chosen = chosen[source.shard :: source.shards]
    _require_rows(chosen, source, skip)
    fingerprint = f"{source.path}:{source.name}:{source.revision}:{split}:{chosen}"
    return HubRows(source.path, partial(open_hub_stream, source, split), fingerprint, chosen)


def _require_rows(chosen: range, source: Source, skip: int) -> None:
    if not chosen:
        raise DataError(
            f"{source.path}: `split: {source.split}` and `skip: {skip}` choose none of its rows."
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
        counts.rows_read += 1
        for reason, place in row.drops:
            counts.drop(reason, row.number, place)
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
