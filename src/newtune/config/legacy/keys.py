"""Old keys and values of the top level → today's."""

from collections.abc import Mapping

from newtune.config.legacy.translation import Translation
from newtune.errors import Problem

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
