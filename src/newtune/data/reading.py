"""Configuration → how the rows of each dataset are read: source, format, template, limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newtune.config.data import DatasetSection, PromptSection
from newtune.config.run import RunConfig
from newtune.data.build import Limits, RowReader
from newtune.data.formats import (
    FormatOptions,
    PromptMapping,
    is_own_function,
    source_digest,
    uses_template,
)
from newtune.data.formats.options import ROLES
from newtune.data.sources import Rows, Source, open_source
from newtune.data.template_choice import choose_template
from newtune.data.tokenize import TextEncoder
from newtune.data.tracing import ChatTemplate
from newtune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_FOLDER = "last_run_prepared"
"""Where prepared data lies, and under `sources` what was downloaded and unpacked for it."""


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset, opened, and how its rows are read."""

    rows: Rows
    name: str
    type: str | PromptMapping | None
    options: FormatOptions
    held_out: bool
    weight: float | None = None
    """None: not given."""
    pieces: int | None = None
    """`preprocess_shards`."""

    def reader(self, encoder: TextEncoder) -> RowReader:
        """Return what reads this dataset's rows.

        Raises:
            DataError: there is no such format, or its options contradict each other.
        """
        return checked_reader(self.name, self.type, self.options, encoder)


def checked_reader(
    name: str, type_: str | PromptMapping | None, options: FormatOptions, encoder: TextEncoder
) -> RowReader:
    """Return what reads the rows of a dataset.

    Raises:
        DataError: there is no such format, or its options contradict each other.
    """
    reader = RowReader(type_, options, encoder)
    try:
        _ = reader.format
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return reader


def plan_datasets(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, held_out_only: bool = False
) -> list[DatasetPlan]:
    """Open every configured dataset, the held-out ones last; nothing is read but sizes and hashes.

    Raises:
        DataError: there is none, or one is missing or contradicts itself.
    """
    given = [(entry, False) for entry in config.data.datasets if not held_out_only]
    given += [(entry, True) for entry in config.data.test_datasets]
    if not given or not (held_out_only or config.data.datasets):
        raise DataError("`datasets` is empty: there is nothing to train on.")
    base_folder = config.source.parent if config.source else Path()
    cache_folder = Path(config.data.dataset_prepared_path or DEFAULT_FOLDER) / "sources"
    return [
        DatasetPlan(
            rows=open_source(source_of(entry, base_folder, cache_folder)),
            name=entry.path,
            type=type_of(entry),
            options=format_options(entry, config, tokenizer, base_folder),
            held_out=held_out,
            weight=entry.weight,
            pieces=entry.preprocess_shards,
        )
        for entry, held_out in given
    ]


def limits_of(config: RunConfig) -> tuple[Limits, Limits]:
    """Return how long an example may be, for training and for held-out data."""
    sequence = config.sequence
    length = sequence.sequence_len
    shortest = sequence.min_sample_len or 0
    excess = sequence.excess_length_strategy
    eval_length = sequence.eval_sequence_len or length
    return Limits(length, excess, shortest), Limits(eval_length, excess, shortest)


def template_to_save(config: RunConfig, datasets: Sequence[FormatOptions]) -> str | None:
    """Return the chat template that goes with the trained model; None keeps the tokenizer's own."""
    templates = [options.template for options in datasets if options.template]
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


def source_of(entry: DatasetSection, base_folder: Path, cache_folder: Path) -> Source:
    """Return where the rows of a dataset are.

    Raises:
        DataError: `shards_idx` names none of the `shards`.
    """
    files = entry.data_files or ()
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
        cache_folder=cache_folder,
        drop_malformed=entry.on_error == "drop",
    )


def type_of(entry: DatasetSection) -> str | PromptMapping | None:
    """Return the format of a dataset's rows: a name, or a prompt of one's own."""
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


def format_options(
    entry: DatasetSection,
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    base_folder: Path,
) -> FormatOptions:
    """Return everything besides the format's name that decides how a dataset's rows are read."""
    data = config.data
    train_on_inputs = entry.train_on_inputs
    train_on_eos = entry.train_on_eos or "turn"
    end_tokens = entry.eot_tokens or data.eot_tokens
    template = None
    if uses_template(entry.type):
        template = _template(entry, config, tokenizer, base_folder)
    return FormatOptions(
        train_on_inputs=data.train_on_inputs if train_on_inputs is None else train_on_inputs,
        default_system_message=data.default_system_message,
        text_field=entry.text_column or entry.field,
        template=template,
        end_tokens=_end_tokens(tokenizer, end_tokens),
        end_tokens_named=bool(end_tokens),
        eos_token=_text(tokenizer.eos_token),
        vocabulary=len(tokenizer),
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
        drop_malformed=entry.on_error == "drop",
        **_own_function(entry, base_folder),
    )


def _own_function(entry: DatasetSection, base_folder: Path) -> dict[str, str]:
    """Return where the user's own function is, and what it is; nothing for other formats."""
    if not is_own_function(entry.type):
        return {}
    folder = str(base_folder)
    return {"folder": folder, "code": source_digest(str(entry.type), folder)}


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
