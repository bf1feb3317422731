"""Configuration → the sources of a stream, found and opened; no row is read yet."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from newtune.config.data import DatasetSection
from newtune.config.rules.streams import TEXT_TYPES
from newtune.config.run import RunConfig
from newtune.data.build import RowReader
from newtune.data.formats import FormatOptions, PromptMapping
from newtune.data.hub import commit_of, open_hub_stream
from newtune.data.reading import (
    DEFAULT_FOLDER,
    checked_reader,
    format_options,
    source_of,
    type_of,
)
from newtune.data.sources import Rows, Source, open_source, parse_split
from newtune.data.sources.find import find_files
from newtune.data.stream.hub import ENDLESS, HubRows
from newtune.data.stream.rows import LocalRows, RowSource
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NEEDS_LENGTH = re.compile(r"\[.*[-%].*\]")
"""Slices that count from the end, or by the hundred."""


@dataclass(frozen=True)
class StreamPlan:
    """One source of a stream and how its rows are read."""

    source: RowSource
    type: str | PromptMapping | None
    options: FormatOptions
    weight: float = 1.0
    held_out: bool = False

    @property
    def name(self) -> str:
        """The source's path."""
        return self.source.name

    @property
    def rows(self) -> Rows | None:
        """The rows by number; None where they come over a network, one after the other."""
        return self.source.rows if isinstance(self.source, LocalRows) else None

    def reader(self, encoder: TextEncoder) -> RowReader:
        """Return what reads the rows.

        Raises:
            DataError: there is no such format, or its options contradict each other.
        """
        return checked_reader(self.name, self.type, self.options, encoder)


def plan_stream(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> list[StreamPlan]:
    """Open every source of a stream: `pretraining_dataset`, then `datasets`.

    Raises:
        DataError: one is missing or contradicts itself.
    """
    data = config.data
    return [
        *(_plan(entry, config, tokenizer, text=True) for entry in data.pretraining_dataset),
        *(_plan(entry, config, tokenizer, text=False) for entry in data.datasets),
    ]


def _plan(
    entry: DatasetSection, config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, text: bool
) -> StreamPlan:
    base_folder = config.source.parent if config.source else Path()
    cache_folder = Path(config.data.dataset_prepared_path or DEFAULT_FOLDER) / "sources"
    options = format_options(entry, config, tokenizer, base_folder)
    type_ = type_of(entry)
    if text and type_ in TEXT_TYPES:
        type_ = "completion"
    source = open_rows(source_of(entry, base_folder, cache_folder), skip=entry.skip or 0)
    return StreamPlan(source, type_, options, 1.0 if entry.weight is None else entry.weight)


def open_rows(source: Source, *, skip: int = 0) -> RowSource:
    """Find a source; return its rows, of which none is read yet.

    `skip` leaves out the first rows of what `split` chooses.

    Raises:
        DataError: the source is missing, or of unknown kind; a slice chooses none of its rows.
    """
    split, choose = parse_split(source.split)
    if find_files(source, split) is not None:
        rows = LocalRows(source.path, open_source(source), skip=skip)
        _require_rows(rows.rows.positions, source, skip)
        return rows
    if _NEEDS_LENGTH.search(source.split):
        raise DataError(
            f"{source.path}: `split: {source.split}` needs the number of rows, which a streamed "
            "dataset does not tell. Write `train[100:500]`, or `skip`."
        )
    chosen = choose(ENDLESS)[skip:]
    if source.shards:
        chosen = chosen[source.shard :: source.shards]
    _require_rows(chosen, source, skip)
    open_commit = partial(open_hub_stream, source, split)
    return HubRows(source.path, open_commit, commit=commit_of(source), chosen=chosen)


def _require_rows(chosen: Sequence[int], source: Source, skip: int) -> None:
    if not chosen:
        raise DataError(
            f"{source.path}: `split: {source.split}` and `skip: {skip}` choose none of its rows."
        )
