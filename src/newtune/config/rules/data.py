"""Rules about datasets and the sequences made of them."""

import string
from collections.abc import Iterator

from newtune.config.data import DatasetSection, PromptSection
from newtune.config.formats import (
    FALLBACK,
    FORMATS,
    REFUSED_FORMATS,
    REFUSED_TEMPLATES,
    TEMPLATE_SOURCES,
    TEMPLATES,
)
from newtune.config.rules.rule import about
from newtune.config.run import RunConfig
from newtune.errors import Problem
from newtune.lookup import did_you_mean, sentence

# Data


@about("datasets", "pretraining_dataset")
def data_is_needed(config: RunConfig) -> Iterator[Problem]:
    """`datasets` is required."""
    if not config.data.datasets and not config.data.pretraining_dataset:
        yield Problem("datasets", "is required", "A list of entries with `path` and `type`.")


@about("datasets", "test_datasets", "pretraining_dataset")
def every_dataset_has_a_path(config: RunConfig) -> Iterator[Problem]:
    """Every dataset entry has a `path`."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        for index, entry in enumerate(getattr(config.data, key)):
            if not entry.path:
                yield Problem(f"{key}.{index}.path", "is required", "A file, folder or hub id.")


@about("datasets", "test_datasets")
def shard_exists(config: RunConfig) -> Iterator[Problem]:
    """`shards_idx` needs `shards`, and is below it: pieces count from 0."""
    for key in ("datasets", "test_datasets"):
        for index, entry in enumerate(getattr(config.data, key)):
            yield from _piece(f"{key}.{index}.shards_idx", entry.shards_idx, entry.shards, "shards")


@about("dataset_shard_num", "dataset_shard_idx")
def merged_shard_exists(config: RunConfig) -> Iterator[Problem]:
    """`dataset_shard_idx` needs `dataset_shard_num`, and is below it: pieces count from 0."""
    data = config.data
    yield from _piece(
        "dataset_shard_idx", data.dataset_shard_idx, data.dataset_shard_num, "dataset_shard_num"
    )


@about("datasets", "test_datasets")
def prompt_placeholders(config: RunConfig) -> Iterator[Problem]:
    """A custom prompt uses `{instruction}` and `{input}`; without an input, no `{input}`."""
    for key in ("datasets", "test_datasets"):
        for index, entry in enumerate(getattr(config.data, key)):
            if isinstance(entry.type, PromptSection):
                yield from _placeholders(entry.type, f"{key}.{index}.type")


@about("datasets", "test_datasets", "rl", "reward_model", "process_reward_model")
def format_exists(config: RunConfig) -> Iterator[Problem]:
    """`type` is a format newtune knows, a mapping, or `package.module:function`."""
    objective = config.objective
    if objective.rl or objective.reward_model or objective.process_reward_model:
        return  # pairs and judged answers have formats of their own
    for path, entry in _entries(config):
        name = entry.type
        if not isinstance(name, str) or not name or name in FORMATS or ":" in name:
            continue
        if name in REFUSED_FORMATS:
            yield Problem(f"{path}.type", f"`{name}` {REFUSED_FORMATS[name]}")
            continue
        families = dict.fromkeys(known.replace(":", ".").split(".")[0] for known in FORMATS)
        hint = sentence(did_you_mean(name, FORMATS))
        known = f"Known: {', '.join(f'`{family}`' for family in families)} and their variants"
        more = "`package.module:function`, or a mapping (a prompt of your own)."
        yield Problem(f"{path}.type", f"no format `{name}`", f"{hint} {known}, {more}".strip())


@about("chat_template", "datasets", "test_datasets")
def template_exists(config: RunConfig) -> Iterator[Problem]:
    """`chat_template` is a template newtune ships, the tokenizer's own, or `jinja`."""
    yield from _template_problems("chat_template", config.data.chat_template)
    for path, entry in _entries(config):
        yield from _template_problems(f"{path}.chat_template", entry.chat_template)


def _entries(config: RunConfig) -> Iterator[tuple[str, DatasetSection]]:
    for key in ("datasets", "test_datasets"):
        for index, entry in enumerate(getattr(config.data, key)):
            yield f"{key}.{index}", entry


def _template_problems(path: str, given: str | None) -> Iterator[Problem]:
    name = (given or "").removeprefix(FALLBACK)
    if not name or name in TEMPLATES or given in TEMPLATE_SOURCES:
        return
    if name in REFUSED_TEMPLATES:
        hint = "`tokenizer_default`, or `jinja` with `chat_template_jinja`."
        yield Problem(path, f"`{name}` {REFUSED_TEMPLATES[name]}", hint)
        return
    names = (*TEMPLATES, *TEMPLATE_SOURCES)
    hint = sentence(did_you_mean(name, names))
    known = ", ".join(f"`{known}`" for known in names)
    yield Problem(path, f"no chat template `{name}`", f"{hint} Known: {known}.".strip())


@about("chat_template", "chat_template_jinja", "datasets", "test_datasets")
def jinja_template_is_there(config: RunConfig) -> Iterator[Problem]:
    """`chat_template: jinja` needs `chat_template_jinja`, which goes with no other template."""
    owners = [("", config.data)]
    for key in ("datasets", "test_datasets"):
        entries = enumerate(getattr(config.data, key))
        owners += [(f"{key}.{index}.", entry) for index, entry in entries]
    for prefix, owner in owners:
        name, text = owner.chat_template, owner.chat_template_jinja
        if name == "jinja" and not text:
            message = "`jinja` needs `chat_template_jinja`: the template, or a file that holds it"
            yield Problem(f"{prefix}chat_template", message)
        if text and name not in (None, "jinja"):
            yield Problem(f"{prefix}chat_template_jinja", f"excludes `chat_template: {name}`")


@about("val_set_size")
def held_out_part(config: RunConfig) -> Iterator[Problem]:
    """`val_set_size` is 0, a number of rows above 1, or a share between 0 and 1."""
    size = config.data.val_set_size
    if size == 1:
        message = "`1` could mean one row or all of them"
        hint = "Write a share such as 0.05, or a number of rows above 1."
        yield Problem("val_set_size", message, hint)
    elif isinstance(size, float) and size > 1 and size != int(size):
        hint = "Above 1 it counts rows; below 1 it is a share."
        yield Problem("val_set_size", f"`{size}` is no number of rows", hint)


@about("val_set_size", "test_datasets")
def one_source_of_held_out_data(config: RunConfig) -> Iterator[Problem]:
    """`val_set_size` and `test_datasets` exclude each other."""
    if config.data.val_set_size and config.data.test_datasets:
        yield Problem("val_set_size", "excludes `test_datasets`", "Keep one of them.")


# Sequences


@about("sample_packing", "batch_flattening")
def one_way_to_join(config: RunConfig) -> Iterator[Problem]:
    """`sample_packing` excludes `batch_flattening: true`: packs are joined already."""
    if config.sequence.sample_packing and config.sequence.batch_flattening is True:
        hint = "Leave it out: packs are joined already."
        yield Problem("batch_flattening", "excludes `sample_packing`", hint)


@about("batch_flattening", "pad_to_sequence_len")
def flattened_rows_have_no_padding(config: RunConfig) -> Iterator[Problem]:
    """`batch_flattening` and `pad_to_sequence_len` exclude each other."""
    if config.sequence.batch_flattening is True and config.sequence.pad_to_sequence_len:
        message = "excludes `batch_flattening`, which lays rows end to end without padding"
        yield Problem("pad_to_sequence_len", message)


@about("min_sample_len", "sequence_len")
def lengths_leave_room(config: RunConfig) -> Iterator[Problem]:
    """`min_sample_len` is at most `sequence_len`."""
    shortest, longest = config.sequence.min_sample_len or 0, config.sequence.sequence_len
    if shortest > longest:
        yield Problem("min_sample_len", f"is {shortest}, above `sequence_len: {longest}`")


def has_held_out_data(config: RunConfig) -> bool:
    """Say whether some data is held out."""
    return bool(config.data.val_set_size or config.data.test_datasets)


def _piece(path: str, index: int | None, pieces: int | None, key: str) -> Iterator[Problem]:
    if index is not None and pieces is None:
        yield Problem(path, f"needs `{key}`, the number of pieces")
    elif index is not None and pieces is not None and index >= pieces:
        yield Problem(path, f"is {index}, but `{key}: {pieces}` has pieces 0 to {pieces - 1}")


def _placeholders(prompt: PromptSection, path: str) -> Iterator[Problem]:
    allowed = {
        "format": ("instruction", "input", "system"),
        "no_input_format": ("instruction", "system"),
        "system_format": ("system",),
    }
    for key, names in allowed.items():
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(getattr(prompt, key) or "")}
        except ValueError as error:
            yield Problem(f"{path}.{key}", f"{error}", "A literal brace is written `{{` or `}}`.")
            continue
        known = ", ".join(f"`{{{name}}}`" for name in names)
        for name in sorted(used - {None, *names}, key=str):
            hint = did_you_mean(str(name), names)
            message = f"`{{{name}}}` cannot be used here; allowed: {known}"
            yield Problem(f"{path}.{key}", message, sentence(hint))
