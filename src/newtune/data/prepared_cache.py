"""The cache of prepared data: what makes a key, where shards lie, which examples were chosen.

PREPARED/datasets/KEY/   the shards of one dataset (`shards`)
PREPARED/KEY/            what was chosen of all datasets, and counted
"""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from newtune.data.build import Limits, check_counts
from newtune.data.choice import Choice, Chosen, choose_examples
from newtune.data.counts import DatasetCounts
from newtune.data.formats import FORMAT_VERSION
from newtune.data.reading import DatasetPlan
from newtune.data.shards import ShardedDataset, shard_counts
from newtune.data.store import ExampleStore
from newtune.data.tokenize import TextEncoder
from newtune.data.tracing import ChatTemplate

MANIFEST = "manifest.json"

STORE_VERSION = 1
"""Part of every key: raise it when the files are laid out in another way."""


class PreparedFiles(NamedTuple):
    """What a prepared folder holds."""

    train: ExampleStore
    evaluation: ExampleStore | None
    counts: list[DatasetCounts]
    folder: Path


def shard_datasets(
    datasets: Sequence[DatasetPlan],
    encoder: TextEncoder,
    limits: Limits,
    eval_limits: Limits,
    root: Path,
    *,
    files: int | None,
) -> list[ShardedDataset]:
    """Say where the shards of each dataset lie; `files` is how many there are in all, if given.

    Raises:
        DataError: there is no such format, or its options contradict each other.
    """
    counts = shard_counts(
        [len(plan.rows) for plan in datasets], [plan.pieces for plan in datasets], files
    )
    sharded = []
    for plan, count in zip(datasets, counts, strict=True):
        own_limits = eval_limits if plan.held_out else limits
        reader = plan.reader(encoder)
        folder = root / "datasets" / dataset_key(plan, encoder, own_limits)
        sharded.append(ShardedDataset(plan.name, plan.rows, reader, own_limits, folder, count))
    return sharded


def dataset_key(plan: DatasetPlan, encoder: TextEncoder, limits: Limits) -> str:
    """Return a digest of everything that decides the tokens of a dataset's rows."""
    return _digest(
        {
            "versions": [FORMAT_VERSION, STORE_VERSION],
            "rows": [plan.rows.fingerprint, plan.name],
            "format": [plan.type, _source_of_function(plan.type), vars(plan.options)],
            "tokenizer": [_digest(encoder.backend_json), encoder.bos, encoder.eos],
            "limits": limits,
        }
    )


def write_choice(
    root: Path, datasets: Sequence[ShardedDataset], held_out: Sequence[bool], choice: Choice
) -> PreparedFiles:
    """Choose among the examples of built shards, or read what was chosen before.

    Raises:
        DataError: a dataset has nothing to train, or nothing would be left.
    """
    keys = [[dataset.folder.name, dataset.count] for dataset in datasets]
    folder = root / _digest({"datasets": keys, "held_out": held_out, "choice": choice})
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not (folder / MANIFEST).is_file():
            train, tests = _stores(datasets, held_out)
            counts = _count(datasets, held_out, train, tests)
            _write(folder, choose_examples(train, choice, tests), counts)
    return _read(folder, *_stores(datasets, held_out))


def _stores(
    datasets: Sequence[ShardedDataset], held_out: Sequence[bool]
) -> tuple[ExampleStore, ExampleStore]:
    """Return the examples of the datasets that are trained, and of those held out whole."""
    parts: dict[bool, list[Any]] = {False: [], True: []}
    for number, (dataset, is_test) in enumerate(zip(datasets, held_out, strict=True)):
        parts[is_test] += dataset.files(number)
    return ExampleStore(parts[False]), ExampleStore(parts[True])


def _count(
    datasets: Sequence[ShardedDataset],
    held_out: Sequence[bool],
    train: ExampleStore,
    tests: ExampleStore,
) -> list[DatasetCounts]:
    counts = []
    for number, (dataset, is_test) in enumerate(zip(datasets, held_out, strict=True)):
        store = tests if is_test else train
        lengths = store.lengths[store.datasets() == number]
        counts.append(dataset.tally.total(dataset.name, lengths))
        check_counts(counts[-1], dataset.tally, dataset.reader.options)
    return counts


def _write(folder: Path, chosen: Chosen, counts: Sequence[DatasetCounts]) -> None:
    """Write aside, then rename: a folder with the final name is whole."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        np.save(aside / "train.npy", chosen.trained)
        np.save(aside / "held_out.npy", chosen.held_out)
        np.save(aside / "tests.npy", chosen.tests)
        counted = [
            asdict(replace(count, duplicates=chosen.duplicates.get(number, 0)))
            for number, count in enumerate(counts)
        ]
        (aside / MANIFEST).write_text(json.dumps({"counts": counted}, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read(folder: Path, train: ExampleStore, tests: ExampleStore) -> PreparedFiles:
    manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    held_out = tests.select(np.load(folder / "tests.npy"))
    if not len(tests):
        held_out = train.select(np.load(folder / "held_out.npy"))
    return PreparedFiles(
        train=train.select(np.load(folder / "train.npy")),
        evaluation=held_out if len(held_out) else None,
        counts=[DatasetCounts.from_dict(entry) for entry in manifest["counts"]],
        folder=folder,
    )


def _source_of_function(type_: Any) -> str | None:
    """Return a digest of the module that holds the user's own format, None for other types."""
    if not isinstance(type_, str) or ":" not in type_ or "." not in type_.split(":", 1)[0]:
        return None
    spec = importlib.util.find_spec(type_.split(":", 1)[0])
    origin = spec.origin if spec else None
    return hashlib.sha256(Path(origin).read_bytes()).hexdigest() if origin else None


def _digest(content: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, ChatTemplate):
            return [value.source, value.variables]
        return asdict(value)

    text = json.dumps(content, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
