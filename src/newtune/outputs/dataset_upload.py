"""Upload prepared data to a hub: tokens and labels as Parquet, which any trainer can read.

data/train-00000-of-00002.parquet   input_ids, attention_mask, labels (-100: not trained)
data/test-00000-of-00001.parquet    the held-out rows, if there are any
README.md                           which file is which split, and what was counted

A dataset without `type` reads it: `datasets: [{path: OWNER/NAME}]`.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from newtune.data.counts import DatasetCounts
from newtune.data.prepare import PreparedData
from newtune.data.store import ExampleStore
from newtune.data.stream.prepare import StreamedData
from newtune.distributed.world import World
from newtune.hub import Repository
from newtune.logs import notice
from newtune.outputs.card import published_name
from newtune.outputs.publish import Change, commit, listed_files, open_repository
from newtune.plan.parts import HubPlan

TOKENS_PER_FILE = 50_000_000
"""About 450 MB before compression."""
ROWS_PER_GROUP = 1000

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("attention_mask", pa.list_(pa.int8())),
        ("labels", pa.list_(pa.int32())),
    ]
)


def upload_data(hub: HubPlan | None, data: PreparedData | StreamedData) -> None:
    """Upload prepared data, if a plan says where to; only the first process does.

    Raises:
        SetupError: this user may not write there.
        ExportError: the hub refused it or cannot be reached.
    """
    if hub is None or not isinstance(data, PreparedData) or World.current().rank > 0:
        return
    repository = open_repository(
        hub.model_id, asked_by="`push_dataset_to_hub`", kind="dataset", private=hub.private
    )
    push_data(repository, data)
    notice(f"Uploaded the prepared data to {repository.page}")


def push_data(repository: Repository, data: PreparedData) -> None:
    """Replace a repository's data by prepared data, as one commit."""
    stores = {"train": data.train}
    if data.evaluation is not None:
        stores["test"] = data.evaluation
    with tempfile.TemporaryDirectory(prefix="newtune-") as folder:
        root = Path(folder)
        for split, store in stores.items():
            write_split(store, root / "data", split)
        card = dataset_card(data.counts, list(stores))
        (root / "README.md").write_text(card, encoding="utf-8")
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        files = {path.relative_to(root).as_posix(): path for path in paths}
        old = {name for name in listed_files(repository) if name.startswith("data/")}
        commit(repository, Change(files, "Upload prepared data", frozenset(old - files.keys())))


def write_split(store: ExampleStore, folder: Path, split: str) -> list[Path]:
    """Write examples as Parquet files of about as many tokens each; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    count = max(1, -(-int(store.lengths.sum(dtype=np.int64)) // TOKENS_PER_FILE))
    bounds = [len(store) * number // count for number in range(count + 1)]
    paths = []
    for number in range(count):
        path = folder / f"{split}-{number:05}-of-{count:05}.parquet"
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for batch in _batches(store, bounds[number], bounds[number + 1]):
                writer.write_batch(batch)
        paths.append(path)
    return paths


def dataset_card(counts: Sequence[DatasetCounts], splits: Sequence[str]) -> str:
    """Return the card, whose front matter names the files of each split."""
    rows = [
        f"| {published_name(count.name)} | {count.examples:,} | {count.tokens:,} "
        f"| {count.trained_tokens:,} |"
        for count in counts
    ]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(f"  - {{split: {split}, path: data/{split}-*}}" for split in splits),
        'tags: ["newtune"]',
        "---",
        "",
        "# Prepared training data",
        "",
        "Tokens and labels (-100: not trained), prepared with newtune.",
        "",
        "| dataset | examples | tokens | trained tokens |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _batches(store: ExampleStore, start: int, end: int) -> Iterator[pa.RecordBatch]:
    for first in range(start, end, ROWS_PER_GROUP):
        examples = [store[index] for index in range(first, min(end, first + ROWS_PER_GROUP))]
        masks = [np.ones(len(example.input_ids), np.int8) for example in examples]
        columns = [
            pa.array([example.input_ids for example in examples], SCHEMA.field(0).type),
            pa.array(masks, SCHEMA.field(1).type),
            pa.array([example.labels for example in examples], SCHEMA.field(2).type),
        ]
        yield pa.record_batch(columns, schema=SCHEMA)
