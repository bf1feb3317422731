"""Datasets of a configuration → prepared data: examples on disk, counted, split, ready to pack.

1. `reading`: what the configuration says → how the rows of each dataset are read
2. `shards`: rows → examples on disk, each shard by itself, found by content; only what is missing
3. `choice`: duplicates left out, shuffled, split into trained and held out
4. `mixing`: how often each dataset's examples stand in an epoch
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from newtune.config.run import RunConfig
from newtune.data.choice import Choice
from newtune.data.counts import DatasetCounts
from newtune.data.mixing import Mixing, Mixture, training_sequences
from newtune.data.packing import Indices, PackingOptions
from newtune.data.prepared_cache import shard_datasets, write_choice
from newtune.data.reading import (
    DEFAULT_FOLDER,
    DatasetPlan,
    limits_of,
    plan_datasets,
    template_to_save,
)
from newtune.data.shards import build_missing
from newtune.data.store import ExampleStore
from newtune.data.system import shared_system_message
from newtune.data.tokenize import TextEncoder
from newtune.errors import DataError
from newtune.logs import logger, notice
from newtune.plan.facts import DataFacts

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
    """Nothing had to be tokenised."""
    mixture: Mixture | None = None
    """None: every training example stands once in every epoch."""
    shards_built: int = 0
    """How many shards had to be tokenised; the others were there."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Per dataset, of all that decides its tokens."""

    def place(self, index: int, *, evaluation: bool = False) -> str:
        """Return where example `index` came from: `path, row 3`."""
        store = self.evaluation if evaluation and self.evaluation else self.train
        dataset, row = store.origin(index)
        return f"{self.counts[dataset].name}, row {row}"

    def sequences(self, epoch: int) -> list[Indices]:
        """Return the sequences of a training epoch in their order: packs, or single examples."""
        return training_sequences(self.train.lengths, self.packing, self.mixture, epoch)


def prepare_data(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, force: bool = False
) -> PreparedData:
    """Read, tokenise, mask, filter and split the configured datasets, or map the cached result.

    `force` prepares anew even when a cache is there. Several processes may prepare the same data
    at once: one does, the others wait.

    Raises:
        DataError: a dataset is missing or wrong, or nothing in it can be trained.
    """
    data = _prepare(config, tokenizer, plan_datasets(config, tokenizer), force=force)
    if not len(data.train):
        raise DataError("No example is left to train on; the counts say why rows were dropped.")
    _compare_estimates(config, data.facts)
    return data


def prepare_held_out(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, force: bool = False
) -> PreparedData:
    """Prepare `test_datasets` alone: what is trained comes from a stream.

    Raises:
        DataError: a dataset is missing or wrong, or nothing in it could be trained.
    """
    plans = plan_datasets(config, tokenizer, held_out_only=True)
    return _prepare(config, tokenizer, plans, force=force)


def _prepare(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    plans: Sequence[DatasetPlan],
    *,
    force: bool,
) -> PreparedData:
    root = Path(config.data.dataset_prepared_path or DEFAULT_FOLDER)
    encoder = TextEncoder.from_tokenizer(tokenizer)
    datasets = shard_datasets(
        plans,
        encoder,
        *limits_of(config),
        root,
        files=config.data.num_dataset_shards_to_save,
    )
    built = build_missing(datasets, processes=config.data.dataset_num_proc, force=force)
    files = write_choice(root, datasets, [plan.held_out for plan in plans], _choice(config))
    total = sum(dataset.count for dataset in datasets)
    what = f"{built} of {total} shards tokenised" if built else "there from an earlier run"
    logger.info("Prepared data in %s: %s", files.folder, what)
    packing = packing_of(config)
    mixture = _mixture(config, plans, files.train)
    return PreparedData(
        train=files.train,
        evaluation=files.evaluation,
        facts=_facts(files.train, files.evaluation, packing, mixture),
        counts=_with_shares(_with_system_messages(files.counts, plans, encoder), mixture),
        packing=packing,
        pad_id=pad_id_of(tokenizer),
        chat_template=template_to_save(config, [plan.options for plan in plans]),
        folder=files.folder,
        from_cache=not built,
        mixture=mixture,
        shards_built=built,
        digests={
            f"dataset {number} ({dataset.name})": dataset.folder.name
            for number, dataset in enumerate(datasets, 1)
        },
    )


def _choice(config: RunConfig) -> Choice:
    data = config.data
    return Choice(
        seed=config.training.seed,
        held_out=0 if data.test_datasets else data.val_set_size,
        shuffle=data.shuffle_merged_datasets and not config.sequence.curriculum_sampling,
        shuffle_first=data.shuffle_before_merging_datasets,
        deduplicate=data.dataset_exact_deduplication,
        shards=data.dataset_shard_num,
        shard=data.dataset_shard_idx or 0,
    )


def _mixture(
    config: RunConfig, plans: Sequence[DatasetPlan], train: ExampleStore
) -> Mixture | None:
    given = config.data.dataset_mixing
    weights = {number: plan.weight for number, plan in enumerate(plans) if not plan.held_out}
    if given is None and all(weight is None for weight in weights.values()):
        return None
    mixing = Mixing(given.by, given.exhaust or "all", given.temperature) if given else Mixing()
    return Mixture.of(
        train.datasets(),
        train.lengths,
        weights,
        mixing,
        seed=config.training.seed,
        keep_order=bool(config.sequence.curriculum_sampling),
    )


def _with_system_messages(
    counts: Sequence[DatasetCounts], plans: Sequence[DatasetPlan], encoder: TextEncoder
) -> list[DatasetCounts]:
    return [
        replace(count, system=shared_system_message(plan.rows, plan.reader(encoder).format))
        for count, plan in zip(counts, plans, strict=True)
    ]


def _with_shares(counts: list[DatasetCounts], mixture: Mixture | None) -> list[DatasetCounts]:
    shares = mixture.realised() if mixture else {}
    return [replace(count, mixed=shares.get(number)) for number, count in enumerate(counts)]


def packing_of(config: RunConfig) -> PackingOptions:
    """Return how the configuration wants examples to share sequences."""
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
        keep_order=bool(sequence.curriculum_sampling),
        fill_in_order=bool(sequence.curriculum_sampling or sequence.sample_packing_sequentially),
        eval_sequence_len=sequence.eval_sequence_len,
    )


def pad_id_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that fills padding; any id does, because padding is its own example."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def _facts(
    train: ExampleStore,
    evaluation: ExampleStore | None,
    packing: PackingOptions,
    mixture: Mixture | None,
) -> DataFacts:
    places = slice(None) if mixture is None else mixture.epoch(0)
    tokens = int(train.lengths[places].sum(dtype=np.int64))
    packs_in_epoch = lru_cache(maxsize=None)(
        lambda epoch: len(training_sequences(train.lengths, packing, mixture, epoch))
    )
    efficiency = None
    if packing.packed and len(train):
        efficiency = tokens / (packs_in_epoch(0) * packing.sequence_len)
    return DataFacts(
        train_examples=len(train),
        eval_examples=len(evaluation) if evaluation else 0,
        tokens=tokens,
        trained_tokens=int(train.trained()[places].sum(dtype=np.int64)),
        eval_tokens=int(evaluation.lengths.sum(dtype=np.int64)) if evaluation else 0,
        packs_in_epoch=packs_in_epoch,
        packing_efficiency=efficiency,
    )


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
