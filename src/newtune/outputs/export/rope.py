"""Rotary embeddings in GGUF: base, scaling, and the factors that stand in tensors of their own."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from newtune.errors import ExportError

Value = int | float | str | bool
Factors = dict[str, NDArray[np.float32]]


def rope_parameters(config: PreTrainedConfig) -> Mapping[str, Any]:
    """Return the parameters of the layers that attend to everything."""
    parameters: dict[str, Any] = config.rope_parameters or {}
    full: dict[str, Any] = parameters.get("full_attention", parameters)
    return full


def rope_metadata(config: PreTrainedConfig) -> Iterator[tuple[str, Value]]:
    """Yield the keys below the architecture's name.

    Raises:
        ExportError: a scaling that GGUF has no name for.
    """
    parameters = rope_parameters(config)
    yield "rope.dimension_count", rotary_dim(config)
    yield "rope.freq_base", float(parameters["rope_theta"])
    kind = parameters.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return
    if kind not in ("linear", "yarn", "longrope"):
        raise ExportError(
            f"GGUF has no rope scaling `{kind}` (rope_parameters of the model's config): it has "
            "linear, yarn, longrope (Phi-3) and llama3."
        )
    yield "rope.scaling.type", kind
    if parameters.get("factor") is not None:
        yield "rope.scaling.factor", float(parameters["factor"])
    original = parameters.get("original_max_position_embeddings")
    if original is not None:
        yield "rope.scaling.original_context_length", int(original)
    if kind == "longrope":
        _, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
        yield "rope.scaling.attn_factor", float(attention_factor)
    names = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
    for ours, theirs in names.items():
        if kind == "yarn" and parameters.get(ours) is not None:
            yield f"rope.scaling.{theirs}", float(parameters[ours])


def rope_factors(config: PreTrainedConfig) -> Factors:
    """Return tensor name → by what each angle's frequency is divided, [rotary_dim / 2]."""
    parameters = rope_parameters(config)
    kind = parameters.get("rope_type", "default")
    if kind == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        dim = rotary_dim(config)
        powers = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
        plain = 1.0 / (float(parameters["rope_theta"]) ** powers)
        return {"rope_freqs.weight": (plain / scaled).numpy().astype(np.float32)}
    if kind == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(parameters[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    return {}


def rotary_dim(config: PreTrainedConfig) -> int:
    """Return how many dims of a head are rotated."""
    share = rope_parameters(config).get("partial_rotary_factor")
    return int(head_dim(config) * (1.0 if share is None else share))


def head_dim(config: PreTrainedConfig) -> int:
    """Return the width of one attention head."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)
