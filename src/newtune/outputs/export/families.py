"""What GGUF calls each family, what its header says, and how its tensors are laid out there.

Two layouts differ from transformers':

    llama, mistral   the rows of Q and K go by pairs that rotate together (0, d/2, 1, d/2+1, ...),
                     in transformers by halves (0, 1, ..., d/2, d/2+1, ...)
    gemma            a norm's weight w stands for 1 + w in transformers; GGUF holds 1 + w itself
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from newtune.errors import ExportError
from newtune.outputs.export.rope import Value, head_dim, rope_metadata

Array = NDArray[np.float32]
Layout = Callable[[str, Array, PreTrainedConfig], Array]
Metadata = Callable[[PreTrainedConfig], Iterator[tuple[str, Value]]]


@dataclass(frozen=True)
class Family:
    """One row of the table: a `model_type` in GGUF's words."""

    architecture: str
    layout: Layout
    metadata: Metadata


def family_of(config: PreTrainedConfig) -> Family:
    """Return the row of a model's config.

    Raises:
        ExportError: naming the families that can be written; or a variant GGUF has no word for.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ExportError(
            f"a model of type `{config.model_type}` cannot be written as GGUF; these can: "
            f"{', '.join(FAMILIES)}."
        )
    _require_known_layers(config)
    return family


def header(family: Family, config: PreTrainedConfig) -> Iterator[tuple[str, Value]]:
    """Yield the keys below the architecture's name, and their values.

    Raises:
        ExportError: a scaling of the rotary embeddings that GGUF has no name for.
    """
    yield "context_length", config.max_position_embeddings
    yield "embedding_length", config.hidden_size
    yield "block_count", config.num_hidden_layers
    yield "feed_forward_length", config.intermediate_size
    yield "attention.head_count", config.num_attention_heads
    yield "attention.head_count_kv", config.num_key_value_heads
    yield "attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)
    yield "attention.key_length", head_dim(config)
    yield "attention.value_length", head_dim(config)
    yield "vocab_size", config.vocab_size
    yield from rope_metadata(config)
    yield from family.metadata(config)


def _as_it_is(name: str, weight: Array, config: PreTrainedConfig) -> Array:
    return weight


def _by_rotating_pairs(name: str, weight: Array, config: PreTrainedConfig) -> Array:
    """Reorder the rows of Q and K, of weight or bias, from halves to pairs within each head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[key] for key in heads if f".{key}." in name), None)
    if count is None:
        return weight
    halves = weight.reshape(count, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _norms_plus_one(name: str, weight: Array, config: PreTrainedConfig) -> Array:
    return weight + np.float32(1) if name.endswith("norm.weight") else weight


def _nothing_more(config: PreTrainedConfig) -> Iterator[tuple[str, Value]]:
    yield from ()


def _sliding(config: PreTrainedConfig) -> Iterator[tuple[str, Value]]:
    if config.sliding_window is not None:
        yield "attention.sliding_window", config.sliding_window


def _gemma2(config: PreTrainedConfig) -> Iterator[tuple[str, Value]]:
    yield from _sliding(config)
    yield "attn_logit_softcapping", float(config.attn_logit_softcapping)
    yield "final_logit_softcapping", float(config.final_logit_softcapping)


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", _by_rotating_pairs, _nothing_more),
    "mistral": Family("llama", _by_rotating_pairs, _nothing_more),
    "qwen2": Family("qwen2", _as_it_is, _nothing_more),
    "qwen3": Family("qwen3", _as_it_is, _nothing_more),
    "gemma2": Family("gemma2", _norms_plus_one, _gemma2),
    "gemma3_text": Family("gemma3", _norms_plus_one, _sliding),
    "phi3": Family("phi3", _as_it_is, _sliding),
}
"""`model_type` of transformers → GGUF."""

FULL_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""Readers of GGUF take every so many layers to attend to everything; the file cannot say others."""


def _require_known_layers(config: PreTrainedConfig) -> None:
    every = FULL_EVERY.get(config.model_type)
    if every is None:
        return
    expected = [
        "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != expected:
        raise ExportError(
            f"this {config.model_type} does not attend to everything in every {every}th layer and "
            "only there; GGUF cannot say so."
        )
    scalar = getattr(config, "query_pre_attn_scalar", None)
    wide = config.hidden_size // config.num_attention_heads  # what the 27B sizes divide by
    if scalar is not None and scalar not in (head_dim(config), wide):
        raise ExportError(
            f"query_pre_attn_scalar is {scalar}; readers of GGUF know {head_dim(config)} "
            "(the width of a head) alone."
        )
