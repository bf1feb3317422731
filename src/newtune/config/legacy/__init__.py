"""Old spellings → today's keys: one small function each, and a notice for each translation.

`OldSpellings` types and documents them; they exist in no other section. The functions in
`TRANSLATIONS` run in order over the values of the file, before the sections are built.
"""

from collections.abc import Callable
from typing import Any

from newtune.config.legacy.datasets import dataset_entries, pretraining_shorthand
from newtune.config.legacy.keys import (
    ATTENTION_FLAGS,
    LEFT_OUT,
    RENAMED,
    attention_flags,
    bf16_full,
    checkpointing_variants,
    keys_left_out,
    optimizer_names,
    packed_length,
    quoted_learning_rate,
    renamed_keys,
    rope_settings,
    tokens_by_role,
)
from newtune.config.legacy.sharding import (
    fsdp_config_names,
    fsdp_final_state,
    fsdp_list,
    fsdp_version_1,
)
from newtune.config.legacy.spellings import (
    OLD_KEYS,
    OldDatasetSpellings,
    OldSpellings,
    old_keys_below,
)
from newtune.config.legacy.translation import Translation

__all__ = [
    "ATTENTION_FLAGS",
    "LEFT_OUT",
    "OLD_KEYS",
    "RENAMED",
    "TRANSLATIONS",
    "OldDatasetSpellings",
    "OldSpellings",
    "Translation",
    "old_keys_below",
    "translate",
]


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
