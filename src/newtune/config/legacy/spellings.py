"""Keys that today are written differently: their types and what became of them."""

from typing import Any

from newtune.config.data import DatasetSection
from newtune.config.parallel import FsdpSection
from newtune.config.section import Integers, Positive, PositiveFloat, Section, Strings


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
