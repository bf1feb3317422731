"""Datasets of a configuration → prepared data: examples on disk, counted, split, ready to pack.

The result is cached by content: files, tokenizer, template and every option that changes tokens
make the key, so that a cache is right or not used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from newtune.config.data import DatasetSection, PromptSection
from newtune.config.run import RunConfig
from newtune.data.build import Limits, RowReader, build_examples
from newtune.data.counts import DatasetCounts
from newtune.data.formats import (
    CONVERSATIONS,
    FORMAT_VERSION,
    FormatOptions,
    PromptMapping,
)
from newtune.data.formats.options import ROLES
from newtune.data.packing import PackingOptions, epoch_sequences, packing_efficiency
from newtune.data.sources import Rows, Source, open_source
from newtune.data.store import ExampleStore, ExampleWriter
from newtune.data.template_choice import choose_template
from newtune.data.tokenize import TextEncoder
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError
from newtune.logs import logger, notice
from newtune.plan.parts import DataFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_FOLDER = "last_run_prepared"
MANIFEST = "manifest.json"


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


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset, opened, and how its rows are read."""

    rows: Rows
    name: str
    type: str | PromptMapping | None
    options: FormatOptions
    held_out: bool

    def reader(self, encoder: TextEncoder) -> RowReader:
        """Return what reads this dataset's rows.

        Raises:
            DataError: there is no such format, or its options contradict each other.
        """
        reader = RowReader(self.type, self.options, encoder)
        try:
            _ = reader.format
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error
        return reader


@dataclass(frozen=True)
class Choice:
    """Which examples are trained and which held out, and in what order; all by `seed`."""

    seed: int
    held_out: float
    """Above 1 rows, below 1 a share, 0 none."""
    shuffle: bool = True
    shuffle_first: bool = False
    """Each dataset by itself."""
    deduplicate: bool = False
    shards: int | None = None
    shard: int = 0


def prepare_data(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, force: bool = False
) -> PreparedData:
    """Read, tokenise, mask, filter and split the configured datasets, or map the cached result.

    `force` prepares anew even when a cache is there.

    Raises:
        DataError: a dataset is missing or wrong, or nothing in it can be trained.
    """
    datasets = _plan_datasets(config, tokenizer)
    encoder = TextEncoder.from_tokenizer(tokenizer)
    for plan in datasets:
        plan.reader(encoder)  # a wrong format is found before anything is read
    limits, eval_limits = _limits(config)
    choice = _choice(config)
    processes = config.data.dataset_num_proc or os.cpu_count() or 1
    key = _cache_key(datasets, encoder, limits, eval_limits, choice)
    root = Path(config.data.dataset_prepared_path or DEFAULT_FOLDER)
    folder = root / key
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{key}.lock"):
        cached = (folder / MANIFEST).is_file() and not force
        if not cached:
            _write_cache(folder, datasets, encoder, limits, eval_limits, choice, processes)
    logger.info("%s %s", "Using the prepared data of" if cached else "Prepared", folder)
    data = _open_prepared(
        folder,
        _packing(config),
        _pad_id(tokenizer),
        cached=cached,
        chat_template=_template_to_save(config, datasets),
    )
    _compare_estimates(config, data.facts)
    return data


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


def _plan_datasets(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> list[DatasetPlan]:
    given = [(entry, False) for entry in config.data.datasets]
    given += [(entry, True) for entry in config.data.test_datasets]
    if not config.data.datasets:
        raise DataError("`datasets` is empty: there is nothing to train on.")
    base_folder = config.source.parent if config.source else Path()
    return [
        DatasetPlan(
            rows=open_source(_source(entry, base_folder)),
            name=entry.path,
            type=_type(entry),
            options=_format_options(entry, config, tokenizer, base_folder),
            held_out=held_out,
        )
        for entry, held_out in given
    ]


def _source(entry: DatasetSection, base_folder: Path) -> Source:
    files = entry.data_files or ()
    # result unchanged by design: rows are always read and written a chunk at a time
    _ = entry.preprocess_shards
    if entry.shards and (entry.shards_idx or 0) >= entry.shards:
        raise DataError(f"{entry.path}: `shards_idx` must be below `shards` ({entry.shards}).")
    return Source(
        path=entry.path,
        kind=entry.ds_type,
        data_files=(files,) if isinstance(files, str) else tuple(files),
        name=entry.name,
        revision=entry.revision,
        split=entry.split or "train",
        trust_remote_code=entry.trust_remote_code,
        shards=entry.shards,
        shard=entry.shards_idx or 0,
        base_folder=base_folder,
    )


def _type(entry: DatasetSection) -> str | PromptMapping | None:
    if not isinstance(entry.type, PromptSection):
        return entry.type
    prompt = entry.type
    return PromptMapping(
        system_prompt=prompt.system_prompt,
        system_format=prompt.system_format,
        field_system=prompt.field_system,
        field_instruction=prompt.field_instruction,
        field_input=prompt.field_input,
        field_output=prompt.field_output,
        format=prompt.format,
        no_input_format=prompt.no_input_format,
    )


def _format_options(
    entry: DatasetSection,
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    base_folder: Path,
) -> FormatOptions:
    data = config.data
    train_on_inputs = entry.train_on_inputs
    train_on_eos = entry.train_on_eos or "turn"
    end_tokens = entry.eot_tokens or data.eot_tokens
    template = None
    if _uses_template(entry):
        template = _template(entry, config, tokenizer, base_folder)
    return FormatOptions(
        train_on_inputs=data.train_on_inputs if train_on_inputs is None else train_on_inputs,
        default_system_message=data.default_system_message,
        text_field=entry.field,
        template=template,
        end_tokens=_end_tokens(tokenizer, end_tokens),
        eos_token=_text(tokenizer.eos_token),
        train_on_eos=train_on_eos,
        train_on_eot=entry.train_on_eot or train_on_eos,
        field_messages=entry.field_messages,
        field_system=entry.field_system or "system",
        field_tools=entry.field_tools or "tools",
        field_thinking=entry.field_thinking or "reasoning_content",
        thinking_key=entry.template_thinking_key or "reasoning_content",
        properties=dict(entry.message_property_mappings or {}),
        roles={name: tuple(aliases) for name, aliases in (entry.roles or ROLES).items()},
        roles_to_train=tuple(
            ("assistant",) if entry.roles_to_train is None else entry.roles_to_train
        ),
        field_training=entry.message_field_training,
        field_training_detail=entry.message_field_training_detail,
        drop_system_message=entry.drop_system_message,
        split_thinking=entry.split_thinking,
    )


def _uses_template(entry: DatasetSection) -> bool:
    """Conversations do, and a user's function may return some."""
    return isinstance(entry.type, str) and (entry.type in CONVERSATIONS or ":" in entry.type)


def _template(
    entry: DatasetSection,
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    base_folder: Path,
) -> ChatTemplate | None:
    own = tokenizer.chat_template
    source = choose_template(
        entry.chat_template or config.data.chat_template,
        jinja=entry.chat_template_jinja or config.data.chat_template_jinja,
        own=own if isinstance(own, str) else (own or {}).get("default"),
        base_folder=base_folder,
    )
    if source is None:
        return None
    tokens = {
        name: _text(token) or ""
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    return ChatTemplate(source, tokens=tokens, arguments=config.data.chat_template_kwargs)


def _end_tokens(
    tokenizer: "PreTrainedTokenizerBase", given: Sequence[str] | None
) -> tuple[str, ...]:
    """Return what may end a turn: what the user named and eos, else every special token."""
    eos = _text(tokenizer.eos_token)
    if given:
        return tuple(dict.fromkeys([*given, *([eos] if eos else [])]))
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*special, *([eos] if eos else [])]))


def _text(token: Any) -> str | None:
    return None if token is None else str(token)


def _limits(config: RunConfig) -> tuple[Limits, Limits]:
    sequence = config.sequence
    length = sequence.sequence_len
    shortest = sequence.min_sample_len or 0
    excess = sequence.excess_length_strategy
    eval_length = sequence.eval_sequence_len or length
    return Limits(length, excess, shortest), Limits(eval_length, excess, shortest)


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


def _template_to_save(config: RunConfig, datasets: Sequence[DatasetPlan]) -> str | None:
    templates = [plan.options.template for plan in datasets if plan.options.template]
    if templates:
        return templates[0].source
    if not config.data.chat_template and not config.data.chat_template_jinja:
        return None
    base_folder = config.source.parent if config.source else Path()
    return (
        choose_template(
            config.data.chat_template,
            jinja=config.data.chat_template_jinja,
            own=None,
            base_folder=base_folder,
        )
        if config.data.chat_template != "tokenizer_default"
        else None
    )


def _cache_key(
    datasets: Sequence[DatasetPlan],
    encoder: TextEncoder,
    limits: Limits,
    eval_limits: Limits,
    choice: Choice,
) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, ChatTemplate):
            return [value.source, value.variables]
        return asdict(value)

    content = {
        "version": FORMAT_VERSION,
        "datasets": [
            [plan.rows.fingerprint, plan.name, plan.type, vars(plan.options), plan.held_out]
            for plan in datasets
        ],
        "tokenizer": [
            hashlib.sha256(encoder.backend_json.encode()).hexdigest(),
            encoder.bos,
            encoder.eos,
        ],
        "limits": [limits, eval_limits],
        "choice": choice,
    }
    text = json.dumps(content, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write_cache(
    folder: Path,
    datasets: Sequence[DatasetPlan],
    encoder: TextEncoder,
    limits: Limits,
    eval_limits: Limits,
    choice: Choice,
    processes: int,
) -> None:
    """Write aside, then rename: a folder with the final name is whole."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        _write_parts(aside, datasets, encoder, limits, eval_limits, choice, processes)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_parts(
    aside: Path,
    datasets: Sequence[DatasetPlan],
    encoder: TextEncoder,
    limits: Limits,
    eval_limits: Limits,
    choice: Choice,
    processes: int,
) -> None:
    counts: list[DatasetCounts] = []
    with ExampleWriter(aside / "train.arrow") as train, ExampleWriter(aside / "eval.arrow") as test:
        for number, plan in enumerate(datasets):
            counts.append(
                build_examples(
                    plan.rows,
                    plan.reader(encoder),
                    eval_limits if plan.held_out else limits,
                    test if plan.held_out else train,
                    name=plan.name,
                    dataset=number,
                    processes=processes,
                )
            )
    every = ExampleStore(aside / "train.arrow")
    held_out_store = ExampleStore(aside / "eval.arrow")
    trained, held_out = choose_examples(every, choice, held_out_store)
    np.save(aside / "train.npy", trained)
    np.save(aside / "held_out.npy", held_out)
    manifest = {"counts": [asdict(count) for count in counts]}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def choose_examples(
    store: ExampleStore, choice: Choice, tests: ExampleStore | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the trained and of the held-out examples, in their order.

    Held out are whole rows: the pieces of one document never stand on both sides. `tests` are
    examples that are held out already; with deduplication none of them is trained.

    Raises:
        DataError: nothing would be left to train on.
    """
    random = np.random.default_rng(choice.seed)
    places = np.arange(len(store))
    datasets, rows = store.origins()
    if choice.deduplicate:
        places = _first_of_equals(store, tests)
    if choice.shuffle_first:
        parts = [places[datasets[places] == number] for number in np.unique(datasets)]
        places = np.concatenate([random.permutation(part) for part in parts])
    if choice.shuffle:
        places = random.permutation(places)
    if choice.shards:
        places = places[choice.shard :: choice.shards]
    if not choice.held_out:
        return places, np.empty(0, dtype=np.int64)
    row_of = datasets[places].astype(np.int64) * (int(rows.max()) + 1) + rows[places]
    distinct = np.unique(row_of)
    wanted = choice.held_out * (len(distinct) if choice.held_out < 1 else 1)
    count = max(1, round(wanted))
    if count >= len(distinct):
        raise DataError(
            f"`val_set_size: {choice.held_out}` would hold out all {len(distinct)} rows and leave "
            "none to train on."
        )
    chosen = np.random.default_rng((choice.seed, 1)).permutation(distinct)[:count]
    is_held_out = np.isin(row_of, chosen)
    return places[~is_held_out], places[is_held_out]


def _first_of_equals(store: ExampleStore, tests: ExampleStore | None) -> NDArray[np.int64]:
    seen = {_digest(tests, index) for index in range(len(tests))} if tests is not None else set()
    kept = []
    for index in range(len(store)):
        digest = _digest(store, index)
        if digest not in seen:
            seen.add(digest)
            kept.append(index)
    if len(kept) < len(store):
        logger.info("Left out %d examples that occurred before.", len(store) - len(kept))
    return np.array(kept, dtype=np.int64)


def _digest(store: ExampleStore, index: int) -> bytes:
    example = store[index]
    digest = hashlib.blake2b(example.input_ids.tobytes(), digest_size=16)
    digest.update(example.labels.tobytes())
    return digest.digest()


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
