"""Old spellings → today's keys: one small function each, and a notice for each translation.

`OldSpellings` types and documents them; they exist in no other section. The functions in
`TRANSLATIONS` run in order over the values of the file, before the sections are built.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from newtune.config.data import DatasetSection
from newtune.config.parallel import FsdpSection
from newtune.config.section import Integers, Positive, PositiveFloat, Section, Strings
from newtune.errors import Problem
from newtune.lookup import did_you_mean


class OldSpellings(Section):
    """Keys that today are written differently. They are translated, with a notice."""

    flash_attention: bool | None = None
    """Now `attn_implementation: flash_attention_2`."""
    sdp_attention: bool | None = None
    """Now `attn_implementation: sdpa`."""
    xformers_attention: bool | None = None
    """Now `attn_implementation: xformers`."""
    flex_attention: bool | None = None
    """Now `attn_implementation: flex_attention`."""
    eager_attention: bool | None = None
    """Now `attn_implementation: eager`."""
    dataset_processes: Positive | None = None
    """Now `dataset_num_proc`."""
    evaluation_strategy: str | None = None
    """Now `eval_strategy`."""
    noisy_embedding_alpha: PositiveFloat | None = None
    """Now `neftune_noise_alpha`."""
    dpo_beta: float | None = None
    """Now `rl_beta`."""
    sequence_parallel_degree: Positive | None = None
    """Now `context_parallel_size`."""
    pretrain_multipack_buffer_size: Positive | None = None
    """Now `streaming_multipack_buffer_size`."""
    max_packed_sequence_len: Positive | None = None
    """Now `sequence_len` with `sample_packing: true`."""
    type_of_model: str | None = None
    """Now `model_type`."""
    model_revision: str | None = None
    """Now `revision_of_model`."""
    model_kwargs: dict[str, Any] | None = None
    """Now `overrides_of_model_kwargs`."""
    rope_scaling: dict[str, Any] | None = None
    """Now `overrides_of_model_config: {rope_scaling: ...}`."""
    rope_theta: PositiveFloat | None = None
    """Now `overrides_of_model_config: {rope_theta: ...}`."""
    fsdp_final_state_dict_type: str | None = None
    """Now `fsdp_config: {final_state_dict_type: ...}`."""
    lora_modules_to_train: Strings | None = None
    """Now `lora_modules_to_save`."""
    lora_layers_to_transform: int | Integers | None = None
    """Now `peft_layers_to_transform`."""
    push_to_hub_model_id: str | None = None
    """Now `hub_model_id`."""
    load_4bit: bool | None = None
    """Now `load_in_4bit`."""
    gptq_groupsize: int | None = None
    """Left out: a GPTQ checkpoint says it itself."""
    gptq_model_v1: bool | None = None
    """Left out: a GPTQ checkpoint says it itself."""
    gptq_bits: int | None = None
    """Left out: a GPTQ checkpoint says it itself."""
    gptq_disable_exllama: bool | None = None
    """Left out: the kernel is chosen by what the machine has."""
    collator_pad_to_longest: bool | None = None
    """Left out: batches are padded to their longest row in any case."""
    sample_packing_seq_len_multiplier: int | None = None
    """Left out: `micro_batch_size` is the number of packs."""
    is_preprocess: bool | None = None
    """Set by other programs; left out."""
    preprocess_iterable: bool | None = None
    """Set by other programs; left out."""
    axolotl_config_path: str | None = None
    """Set by other programs; left out."""
    inference: bool | None = None
    """Left out: `newtune chat` and `newtune generate` are commands of their own."""


class OldDatasetSpellings(Section):
    """Keys of a dataset entry that today are written differently."""

    train_on_split: str | None = None
    """Now `split`."""
    message_field_role: str | None = None
    """Now `message_property_mappings: {role: ...}`."""
    message_field_content: str | None = None
    """Now `message_property_mappings: {content: ...}`."""
    conversation: str | None = None
    """Now `chat_template`."""
    field_human: str | None = None
    """Now `roles: {user: [...]}`."""
    field_model: str | None = None
    """Now `roles: {assistant: [...]}`."""
    strict: bool | None = None
    """Left out: malformed rows are always counted and shown."""


@dataclass
class Translation:
    """The values being translated, and what was said about it."""

    values: dict[str, Any]
    from_command_line: frozenset[str] = frozenset()
    """Top-level keys that the command line set."""
    notices: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    written_as: dict[str, str] = field(default_factory=dict)
    """Dotted key of today → dotted key that the user wrote."""

    def take(self, old: str) -> Any:
        """Remove an old key and return its value; None if it was not given or is off."""
        value = self.values.pop(old, None)
        return None if value is False or value == "" else value

    def put(self, key: str, value: Any, old: str, said: str) -> None:
        """Set today's key to what the old one said, and leave a notice.

        When both are given, the command line goes before the file; otherwise they must agree.
        """
        current = self.values.get(key)
        if current is None:
            self.values[key] = value
            self.written_as[key] = old
        elif key not in self.from_command_line and current != value:
            message = f"contradicts `{key}: {current}`, which is today's name of the same thing"
            self.problems.append(Problem(old, message, f"Keep `{key}`."))
            return
        self.notices.append(f"`{old}` is now `{said}`.")


OLD_KEYS = (*OldSpellings.key_names(), "model_config")
"""Every old key of the top level; pydantic reserves the name of the last."""


def old_keys_below(cls: type[Section]) -> tuple[str, ...]:
    """Return the old keys that may stand where the keys of `cls` do."""
    if cls is DatasetSection:
        return OldDatasetSpellings.key_names()
    if cls is FsdpSection:
        prefixed = tuple(f"fsdp_{key}" for key in FsdpSection.key_names())
        return (*prefixed, "fsdp_version", "version")
    return ()


ATTENTION_FLAGS: Mapping[str, str] = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "xformers_attention": "xformers",
    "flex_attention": "flex_attention",
    "eager_attention": "eager",
}
"""Old flag → `attn_implementation`."""

RENAMED: Mapping[str, str] = {
    "dataset_processes": "dataset_num_proc",
    "evaluation_strategy": "eval_strategy",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "dpo_beta": "rl_beta",
    "sequence_parallel_degree": "context_parallel_size",
    "pretrain_multipack_buffer_size": "streaming_multipack_buffer_size",
    "type_of_model": "model_type",
    "model_revision": "revision_of_model",
    "model_config": "overrides_of_model_config",
    "model_kwargs": "overrides_of_model_kwargs",
    "push_to_hub_model_id": "hub_model_id",
    "load_4bit": "load_in_4bit",
    "lora_modules_to_train": "lora_modules_to_save",
    "lora_layers_to_transform": "peft_layers_to_transform",
}
"""Keys that changed nothing but their name."""

LEFT_OUT: Mapping[str, str] = {
    "gptq_groupsize": "a GPTQ checkpoint says it itself",
    "gptq_model_v1": "a GPTQ checkpoint says it itself",
    "gptq_bits": "a GPTQ checkpoint says it itself",
    "gptq_disable_exllama": "the kernel is chosen by what the machine has",
    "collator_pad_to_longest": "batches are padded to their longest row in any case",
    "sample_packing_seq_len_multiplier": "`micro_batch_size` is the number of packs",
    "is_preprocess": "it is set by other programs",
    "preprocess_iterable": "it is set by other programs",
    "axolotl_config_path": "it is set by other programs",
    "inference": "`newtune chat` and `newtune generate` are commands of their own",
}
"""Keys that newtune has no use for → why."""

OPTIMIZER_NAMES: Mapping[str, str] = {
    "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_apex_fused": "adamw_torch_fused",
    "paged_adamw": "paged_adamw_32bit",
    "paged_lion": "paged_lion_32bit",
    "lion": "lion_32bit",
}
"""Old name of an optimizer → today's."""

CHECKPOINTING_VARIANTS = ("unsloth", "offload", "offload_disk")
FSDP_WORDS: Mapping[str, tuple[str, Any]] = {
    "full_shard": ("reshard_after_forward", True),
    "shard_grad_op": ("reshard_after_forward", False),
    "hybrid_shard": ("sharding_strategy", "HYBRID_SHARD"),
    "hybrid_shard_zero2": ("sharding_strategy", "HYBRID_SHARD_ZERO2"),
    "no_shard": ("sharding_strategy", "NO_SHARD"),
    "offload": ("offload_params", True),
    "auto_wrap": ("auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
}
"""Word of the old `fsdp` list → key and value of `fsdp_config`."""


def renamed_keys(said: Translation) -> None:
    """Keys that changed nothing but their name."""
    for old, key in RENAMED.items():
        value = said.take(old)
        if value is not None:
            said.put(key, value, old, key)


def keys_left_out(said: Translation) -> None:
    """Keys that newtune has no use for."""
    for key, reason in LEFT_OUT.items():
        if said.take(key) is not None:
            said.notices.append(f"`{key}` was left out: {reason}.")


def attention_flags(said: Translation) -> None:
    """`flash_attention: true` and its like are `attn_implementation`."""
    given = [flag for flag in ATTENTION_FLAGS if said.take(flag)]
    if len(given) > 1:
        also = " and ".join(f"`{flag}`" for flag in given[1:])
        message = f"asks for another attention implementation than {also}"
        said.problems.append(Problem(given[0], message, "Keep one of them."))
        return
    for flag in given:
        name = ATTENTION_FLAGS[flag]
        said.put("attn_implementation", name, flag, f"attn_implementation: {name}")


def rope_settings(said: Translation) -> None:
    """`rope_scaling` and `rope_theta` are overrides of the model's configuration."""
    for old in ("rope_scaling", "rope_theta"):
        value = said.take(old)
        if value is None:
            continue
        overrides = said.values.get("overrides_of_model_config")
        if not isinstance(overrides, dict):
            overrides = said.values["overrides_of_model_config"] = {}
        overrides.setdefault(old, value)
        said.written_as[f"overrides_of_model_config.{old}"] = old
        said.notices.append(f"`{old}` is now `overrides_of_model_config: {{{old}: ...}}`.")


def tokens_by_role(said: Translation) -> None:
    """`tokens: {pad_token: ...}` is `special_tokens`."""
    tokens = said.values.get("tokens")
    if isinstance(tokens, dict):
        del said.values["tokens"]
        said.put("special_tokens", tokens, "tokens", "special_tokens")


def packed_length(said: Translation) -> None:
    """`max_packed_sequence_len` is `sequence_len` with packing."""
    length = said.take("max_packed_sequence_len")
    if length is not None:
        said.values["sequence_len"] = length
        said.values["sample_packing"] = True
        said.notices.append(
            f"`max_packed_sequence_len` is now `sequence_len: {length}` and `sample_packing: true`."
        )


def bf16_full(said: Translation) -> None:
    """`bf16: full` asked for 16 bit in evaluation too, which autocast does anyway."""
    if said.values.get("bf16") == "full":
        said.values["bf16"] = True
        said.notices.append("`bf16: full` is now `bf16: true`; evaluation runs in bf16 too.")


def checkpointing_variants(said: Translation) -> None:
    """`gradient_checkpointing: unsloth` and `offload` are plain checkpointing here."""
    variant = said.values.get("gradient_checkpointing")
    if variant in CHECKPOINTING_VARIANTS:
        said.values["gradient_checkpointing"] = True
        said.notices.append(
            f"`gradient_checkpointing: {variant}` runs as `true`: activations are recomputed, "
            "and the few that are kept stay on the device. Same result."
        )


def optimizer_names(said: Translation) -> None:
    """Optimizers that were renamed or replaced by an equal one."""
    old = said.values.get("optimizer")
    name = OPTIMIZER_NAMES.get(old) if isinstance(old, str) else None
    if name:
        said.values["optimizer"] = name
        said.notices.append(f"`optimizer: {old}` is now `{name}`.")


def quoted_learning_rate(said: Translation) -> None:
    """`learning_rate: "2e-4"` is a number in quotes."""
    value = said.values.get("learning_rate")
    if isinstance(value, str):
        try:
            said.values["learning_rate"] = float(value)
        except ValueError:
            return
        said.notices.append(f'`learning_rate: "{value}"` was read as the number it quotes.')


def fsdp_config_names(said: Translation) -> None:
    """The `fsdp_` prefix inside `fsdp_config` may be left out; the version stands outside."""
    config = said.values.get("fsdp_config")
    if not isinstance(config, dict):
        return
    for old in list(config):
        key = str(old).removeprefix("fsdp_")
        if key == "version":
            said.put("fsdp_version", config.pop(old), f"fsdp_config.{old}", "fsdp_version")
        elif key != old and key in FsdpSection.key_names():
            config.setdefault(key, config.pop(old))
            said.written_as[f"fsdp_config.{key}"] = f"fsdp_config.{old}"


def fsdp_final_state(said: Translation) -> None:
    """`fsdp_final_state_dict_type` lives in `fsdp_config`."""
    value = said.take("fsdp_final_state_dict_type")
    if value is not None:
        _fsdp_config(said).setdefault("final_state_dict_type", value)
        said.written_as["fsdp_config.final_state_dict_type"] = "fsdp_final_state_dict_type"
        said.notices.append(
            "`fsdp_final_state_dict_type` is now `fsdp_config: {final_state_dict_type: ...}`."
        )


def fsdp_list(said: Translation) -> None:
    """The words of the old `fsdp` list are keys of `fsdp_config`."""
    words = said.values.get("fsdp")
    if isinstance(words, str):
        words = words.split()
    if not isinstance(words, list) or not words:
        return
    unknown = [word for word in words if not _is_fsdp_word(word)]
    for word in unknown:
        path = f"fsdp.{words.index(word)}"
        hint = did_you_mean(str(word), FSDP_WORDS) or f"known: {', '.join(FSDP_WORDS)}"
        message = f"`{word}` is no sharding option; {hint}"
        said.problems.append(Problem(path, message))
    del said.values["fsdp"]
    config = _fsdp_config(said)
    for word in words:
        if _is_fsdp_word(word):
            key, value = FSDP_WORDS[word]
            config.setdefault(key, value)
            said.notices.append(f"`fsdp: {word}` is now `fsdp_config: {{{key}: {_yaml(value)}}}`.")
    said.written_as.setdefault("fsdp_config", "fsdp")


def _is_fsdp_word(word: object) -> bool:
    return isinstance(word, str) and word in FSDP_WORDS


def fsdp_version_1(said: Translation) -> None:
    """FSDP2 is what runs."""
    if said.values.get("fsdp_version") == 1:
        said.values["fsdp_version"] = 2
        said.notices.append("`fsdp_version: 1` runs as 2: the same sharding, done by FSDP2.")


def pretraining_shorthand(said: Translation) -> None:
    """`pretraining_dataset` may be a path or one mapping; it is a list."""
    value = said.values.get("pretraining_dataset")
    if isinstance(value, str) and value:
        value = {"path": value}
    if isinstance(value, dict):
        said.values["pretraining_dataset"] = [value]
        said.notices.append("`pretraining_dataset` is now a list of datasets.")


def dataset_entries(said: Translation) -> None:
    """Old keys of dataset entries."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        entries = said.values.get(key)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict):
                path = f"{key}.{index}"
                for translate in DATASET_TRANSLATIONS:
                    said.notices += [f"`{path}`: {text}" for text in translate(entry)]
                if "split" in entry:
                    said.written_as.setdefault(f"{path}.split", f"{path}.train_on_split")


def _train_on_split(entry: dict[str, Any]) -> Iterator[str]:
    """`train_on_split` is `split`."""
    split = entry.pop("train_on_split", None)
    if split not in (None, ""):
        entry.setdefault("split", split)
        yield "`train_on_split` is now `split`."


def _sharegpt(entry: dict[str, Any]) -> Iterator[str]:
    """`sharegpt` is `chat_template` over `conversations` of `from` and `value`."""
    kind = entry.get("type")
    if not isinstance(kind, str) or kind.replace(":", ".").split(".")[0] != "sharegpt":
        return
    entry["type"] = "chat_template"
    entry.setdefault("field_messages", "conversations")
    mapping = {"role": "from", "content": "value"}
    if kind.endswith("load_role"):
        mapping = {"role": "role", "content": "value"}
    entry.setdefault("message_property_mappings", mapping)
    yield f"`type: {kind}` is now `chat_template` over `conversations` of `from` and `value`."


def _conversation(entry: dict[str, Any]) -> Iterator[str]:
    """`conversation` named the template of a sharegpt dataset."""
    name = entry.pop("conversation", None)
    if name not in (None, ""):
        entry.setdefault("chat_template", {"llama-3": "llama3"}.get(str(name), name))
        yield "`conversation` is now `chat_template`."


def _message_fields(entry: dict[str, Any]) -> Iterator[str]:
    """`message_field_role` and `message_field_content` are one mapping."""
    for name in ("role", "content"):
        value = entry.pop(f"message_field_{name}", None)
        if value in (None, ""):
            continue
        mapping = entry.get("message_property_mappings")
        if not isinstance(mapping, dict):
            mapping = entry["message_property_mappings"] = {"role": "role", "content": "content"}
        mapping[name] = value
        yield f"`message_field_{name}` is now `message_property_mappings: {{{name}: {value}}}`."


def _role_names(entry: dict[str, Any]) -> Iterator[str]:
    """`field_human` and `field_model` are names of roles; `input` and `output` are old roles."""
    roles = entry.get("roles") or {}
    if isinstance(roles, dict):
        for old, role in (("input", "user"), ("output", "assistant")):
            if old in roles:
                roles.setdefault(role, roles.pop(old))
                yield f"`roles: {{{old}: ...}}` is now `roles: {{{role}: ...}}`."
    for old, role in (("field_human", "user"), ("field_model", "assistant")):
        name = entry.pop(old, None)
        if name not in (None, "") and isinstance(roles, dict):
            entry["roles"] = roles
            roles.setdefault(role, [name])
            yield f"`{old}` is now `roles: {{{role}: [{name}]}}`."


def _strict_rows(entry: dict[str, Any]) -> Iterator[str]:
    """`strict` of a sharegpt dataset."""
    if entry.pop("strict", None) is not None:
        yield "`strict` was left out: malformed rows are always counted and shown."


def _fsdp_config(said: Translation) -> dict[str, Any]:
    config = said.values.get("fsdp_config")
    if not isinstance(config, dict):
        config = said.values["fsdp_config"] = {}
    return config


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


DATASET_TRANSLATIONS: tuple[Callable[[dict[str, Any]], Iterator[str]], ...] = (
    _train_on_split,
    _sharegpt,
    _conversation,
    _message_fields,
    _role_names,
    _strict_rows,
)

TRANSLATIONS: tuple[Callable[[Translation], None], ...] = (
    renamed_keys,
    keys_left_out,
    attention_flags,
    rope_settings,
    tokens_by_role,
    packed_length,
    bf16_full,
    checkpointing_variants,
    optimizer_names,
    quoted_learning_rate,
    fsdp_config_names,
    fsdp_final_state,
    fsdp_list,
    fsdp_version_1,
    pretraining_shorthand,
    dataset_entries,
)


def translate(values: dict[str, Any], from_command_line: frozenset[str]) -> Translation:
    """Translate `values` in place."""
    translation = Translation(values, from_command_line)
    for step in TRANSLATIONS:
        step(translation)
    return translation
