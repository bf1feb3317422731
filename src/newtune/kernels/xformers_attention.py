"""Attention by xformers' kernels: all examples of all rows at once, none seeing another."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from newtune.errors import ModelError
from newtune.kernels.packed_attention import example_lengths


def xformers_attention(
    query: Float[Tensor, "batch heads seq head_dim"],
    key: Float[Tensor, "batch kv_heads seq head_dim"],
    value: Float[Tensor, "batch kv_heads seq value_dim"],
    first_keys: Int[Tensor, "batch seq"],
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads seq value_dim"]:
    """Return what `packed_attention` does; CUDA only.

    Raises:
        ModelError: the model caps its scores, which xformers cannot.
    """
    if softcap is not None:
        raise ModelError("`xformers` cannot cap scores. Set `attn_implementation: eager`.")
    from xformers.ops import memory_efficient_attention

    batch, heads, *_ = query.shape
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # [batch, heads, seq, dim] → [1, batch · seq, heads, dim]
    query, key, value = (x.transpose(1, 2).flatten(0, 1).unsqueeze(0) for x in (query, key, value))
    output: Tensor = memory_efficient_attention(
        query, key, value, attn_bias=block_bias(first_keys), p=dropout, scale=scaling
    )
    return output.view(batch, -1, *output.shape[2:]).transpose(1, 2)


def block_bias(first_keys: Int[Tensor, "batch seq"]) -> Any:
    """Return xformers' bias for the rows laid end to end: causal blocks, perhaps windowed."""
    from xformers.ops.fmha.attn_bias import (
        BlockDiagonalCausalMask,
    )

    lengths, window = blocks(first_keys)
    bias = BlockDiagonalCausalMask.from_seqlens(lengths, device=first_keys.device)
    return bias if window is None else bias.make_local_attention(window)


def blocks(first_keys: Int[Tensor, "batch seq"]) -> tuple[list[int], int | None]:
    """Return the examples' lengths over all rows, and the sliding window that cuts them, if any.

    A layer's window is the same for every example, so that the longest view of a query tells it.
    """
    lengths = [length for row in first_keys for length in example_lengths(row)]
    seen = first_keys.new_ones(first_keys.shape).cumsum(-1) - first_keys
    window = int(seen.max())
    return lengths, None if window == max(lengths) else window
