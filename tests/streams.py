"""Small streams of text: files, sources and blocks that take three lines to make.

folder = write_texts(tmp_path / "a.jsonl", ["one two", "three"])
stream = blocks_of([source_of(path, limit=32)], examples=8)
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from newtune.data.build import Limits, RowReader
from newtune.data.formats import FormatOptions
from newtune.data.packing import PackingOptions
from newtune.data.sources import NumberedRow, Source, open_source
from newtune.data.stream.blocks import BlockOptions, BlockReader, Laid
from newtune.data.stream.encoded import EncodedSource
from newtune.data.stream.rows import LocalRows
from newtune.data.stream.state import StreamState
from newtune.data.tokenize import TextEncoder
from tiny import tiny_tokenizer

WORDS = ("river", "bridge", "city", "week", "story", "model", "paris", "capital", "people")


def texts(count: int, *, seed: int = 0, longest: int = 12) -> list[str]:
    """Return random texts; each begins with its number."""
    draw = random.Random(seed)
    return [
        f"{number} {' '.join(draw.choices(WORDS, k=draw.randint(1, longest)))}"
        for number in range(count)
    ]


def write_texts(path: Path, rows: Sequence[str], column: str = "text") -> Path:
    """Write one object a line; a file that is there stays, it may be being read."""
    if not path.exists():
        path.write_text("".join(json.dumps({column: row}) + "\n" for row in rows))
    return path


def ids_of(rows: Sequence[str]) -> list[list[int]]:
    """Return the tokens of documents, their end included, encoded one by one."""
    backend = encoder().backend
    return [[*backend.encode(row, add_special_tokens=False).ids, 2] for row in rows]


def encoder() -> TextEncoder:
    return TextEncoder.from_tokenizer(tiny_tokenizer())


def local_rows(path: Path, *, split: str = "train", skip: int = 0, **source: Any) -> LocalRows:
    place = Source(str(path), split=split, cache_folder=path.parent / "cache", **source)
    return LocalRows(path.name, open_source(place), skip=skip)


def text_reader() -> RowReader:
    return RowReader("completion", FormatOptions(), encoder())


def text_source(rows: Any, *, limit: int = 512, **options: Any) -> EncodedSource:
    rows = local_rows(rows) if isinstance(rows, Path) else rows
    return EncodedSource(rows, text_reader(), Limits(limit), **options)


def block_reader(
    sources: Sequence[EncodedSource],
    *,
    examples: int = 10,
    weights: Sequence[float] | None = None,
    join: bool = False,
    isolated: bool = True,
    **packing: Any,
) -> BlockReader:
    options = PackingOptions(**{"sequence_len": 512, **packing})
    return BlockReader(
        sources,
        weights or [1.0] * len(sources),
        BlockOptions(examples, options, join=join, isolated=isolated),
    )


def sequences(reader: BlockReader, count: int) -> list[Laid]:
    """Return the first sequences of a stream."""
    found: list[Laid] = []
    place = StreamState.beginning(len(reader.sources))
    while len(found) < count:
        block = reader.read(place)
        found += block.sequences
        place = block.end
    return found[:count]


def as_ids(laid: Sequence[Laid]) -> list[list[list[int]]]:
    return [[example.input_ids.tolist() for example in entry.examples] for entry in laid]


class ListedRows:
    """Rows in memory; reading fails where `fails` has the number of a read."""

    def __init__(self, rows: Sequence[dict[str, Any]], *, fails: Sequence[int] = ()) -> None:
        self.name = "listed"
        self.identity = {"content": "listed"}
        self.rows = rows
        self.fails = set(fails)
        self.reads = 0

    def read(self, start: int, anchor: Any = None) -> Iterator[NumberedRow]:
        for position in range(start, len(self.rows)):
            self.reads += 1
            if self.reads in self.fails:
                raise ConnectionResetError("the line is dead")
            yield NumberedRow(position + 1, self.rows[position], f"listed, row {position + 1}")

    def anchor(self) -> None:
        return None

    def return_to(self, identity: Any) -> None:
        assert identity == self.identity
