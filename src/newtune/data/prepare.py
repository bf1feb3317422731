"""Datasets of a configuration → prepared data: examples on disk, counted, split, ready to pack.

The result is cached by content: files, tokenizer, template and every option that changes tokens
make the key, so that a cache is right or not used.
"""

import json
import os
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from newtune.config.run import RunConfig
from newtune.data.choice import Choice
from newtune.data.counts import DatasetCounts
from newtune.data.packing import PackingOptions, epoch_sequences, packing_efficiency
from newtune.data.prepared_cache import MANIFEST, cache_key, write_cache
from newtune.data.reading import DEFAULT_FOLDER, limits_of, plan_datasets, template_to_save
from newtune.data.store import ExampleStore
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError
from newtune.logs import logger, notice
from newtune.plan.parts import DataFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedData:
    """Everything the plan and the trainer need to know of the data."""

    train: ExampleStore
    evaluation: ExampleStore | None
    facts: DataFacts
    counts: list[DatasetCounts]
    """Per configured dataset, the held-out ones last."""
    packing: PackingOptions
    pad_id: int
    chat_template: str | None
    """The template to save with the tokenizer; None keeps its own."""
    folder: Path
    from_cache: bool

    def place(self, index: int, *, evaluation: bool = False) -> str:
        """Return where example `index` came from: `path, row 3`."""
        store = self.evaluation if evaluation and self.evaluation else self.train
        dataset, row = store.origin(index)
        return f"{self.counts[dataset].name}, row {row}"


def prepare_data(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, force: bool = False
) -> PreparedData:
    """Read, tokenise, mask, filter and split the configured datasets, or map the cached result.

    `force` prepares anew even when a cache is there.

    Raises:
        DataError: a dataset is missing or wrong, or nothing in it can be trained.
    """
    datasets = plan_datasets(config, tokenizer)
    encoder = TextEncoder.from_tokenizer(tokenizer)
    for plan in datasets:
        plan.reader(encoder)  # a wrong format is found before anything is read
    limits, eval_limits = limits_of(config)
    choice = _choice(config)
    processes = config.data.dataset_num_proc or os.cpu_count() or 1
    key = cache_key(datasets, encoder, limits, eval_limits, choice)
    root = Path(config.data.dataset_prepared_path or DEFAULT_FOLDER)
    folder = root / key
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{key}.lock"):
        cached = (folder / MANIFEST).is_file() and not force
        if not cached:
            write_cache(folder, datasets, encoder, limits, eval_limits, choice, processes)
    logger.info("%s %s", "Using the prepared data of" if cached else "Prepared", folder)
    data = _open_prepared(
        folder,
        _packing(config),
        _pad_id(tokenizer),
        cached=cached,
        chat_template=template_to_save(config, datasets),
    )
    _compare_estimates(config, data.facts)
    return data


def _choice(config: RunConfig) -> Choice:
    data = config.data
    if data.dataset_shard_num and (data.dataset_shard_idx or 0) >= data.dataset_shard_num:
        raise DataError(
            f"`dataset_shard_idx` must be below `dataset_shard_num` ({data.dataset_shard_num})."
        )
    return Choice(
        seed=config.training.seed,
        held_out=0 if data.test_datasets else data.val_set_size,
        shuffle=data.shuffle_merged_datasets,
        shuffle_first=data.shuffle_before_merging_datasets,
        deduplicate=data.dataset_exact_deduplication,
        shards=data.dataset_shard_num,
        shard=data.dataset_shard_idx or 0,
    )


def _packing(config: RunConfig) -> PackingOptions:
    sequence = config.sequence
    packed = sequence.sample_packing
    eval_packed = sequence.eval_sample_packing
    return PackingOptions(
        sequence_len=sequence.sequence_len,
        packed=packed,
        eval_packed=packed if eval_packed is None else eval_packed,
        max_examples=sequence.sample_packing_bin_size,
        group_size=sequence.sample_packing_group_size,
        seed=config.training.seed,
        pad_to_sequence_len=sequence.pad_to_sequence_len,
        pad_to_multiple_of=sequence.pad_to_multiple_of,
        flatten=packed or bool(sequence.batch_flattening),
        group_by_length=sequence.group_by_length,
        keep_order=bool(sequence.curriculum_sampling or sequence.sample_packing_sequentially),
        eval_sequence_len=sequence.eval_sequence_len,
    )


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that fills padding; any id does, because padding is its own example."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def _open_prepared(
    folder: Path,
    packing: PackingOptions,
    pad_id: int,
    *,
    cached: bool,
    chat_template: str | None,
) -> PreparedData:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    counts = [DatasetCounts.from_dict(entry) for entry in manifest["counts"]]
    every = ExampleStore(folder / "train.arrow")
    train = every.select(np.load(folder / "train.npy"))
    held_out = ExampleStore(folder / "eval.arrow")
    if not len(held_out):
        held_out = every.select(np.load(folder / "held_out.npy"))
    if not len(train):
        raise DataError("No example is left to train on; the counts say why rows were dropped.")
    evaluation = held_out if len(held_out) else None
    return PreparedData(
        train=train,
        evaluation=evaluation,
        facts=_facts(train, evaluation, packing),
        counts=counts,
        packing=packing,
        pad_id=pad_id,
        chat_template=chat_template,
        folder=folder,
        from_cache=cached,
    )


def _facts(
    train: ExampleStore, evaluation: ExampleStore | None, packing: PackingOptions
) -> DataFacts:
    count = partial(_sequences_in_epoch, train, packing)
    packs_in_epoch = lru_cache(maxsize=None)(count)
    efficiency = None
    if packing.packed:
        efficiency = packing_efficiency(train.lengths, packs_in_epoch(0), packing.sequence_len)
    return DataFacts(
        train_examples=len(train),
        eval_examples=len(evaluation) if evaluation else 0,
        tokens=int(train.lengths.sum(dtype=np.int64)),
        trained_tokens=int(train.trained().sum(dtype=np.int64)),
        eval_tokens=int(evaluation.lengths.sum(dtype=np.int64)) if evaluation else 0,
        packs_in_epoch=packs_in_epoch,
        packing_efficiency=efficiency,
    )


def _sequences_in_epoch(train: ExampleStore, packing: PackingOptions, epoch: int) -> int:
    if not packing.packed:
        return len(train)
    return len(epoch_sequences(train.lengths, packing, epoch))


def _compare_estimates(config: RunConfig, facts: DataFacts) -> None:
    """Say how estimates that the user gave differ from what was counted."""
    measured = {
        "sample_packing_eff_est": (
            config.sequence.sample_packing_eff_est,
            facts.packing_efficiency,
        ),
        "total_num_tokens": (config.sequence.total_num_tokens, facts.tokens),
    }
    for key, (given, counted) in measured.items():
        if given is not None and counted is not None:
            notice(f"`{key}` is given as {given:g}; counted: {counted:g}, which is what is used.")
