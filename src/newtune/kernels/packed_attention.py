"""Causal attention over sequences that hold several examples, without crossing from one to another.

Which keys a query may see is told by one number per query, `first_keys`: query t sees the keys
first_keys[t] .. t. One form says it all:

    one example of 5              [0 0 0 0 0]
    two examples, 3 and 2         [0 0 0 3 3]
    the same, sliding window 2    [0 0 1 3 3]
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHORT_EXAMPLE = 256
"""Up to this length torch's CPU attention is faster in float32 than in bfloat16 (52 tokens: 11
against 37 ms forward and backward, one thread, torch 2.13); beyond it, slower."""


def packed_attention_reference(
    query: Float[Tensor, "batch heads seq head_dim"],
    key: Float[Tensor, "batch kv_heads seq head_dim"],
    value: Float[Tensor, "batch kv_heads seq value_dim"],
    first_keys: Int[Tensor, "batch seq"],
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads seq value_dim"]:
    """What `packed_attention` computes, with the whole score matrix in memory."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible_keys(first_keys).unsqueeze(1), float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value


def packed_attention(
    query: Float[Tensor, "batch heads seq head_dim"],
    key: Float[Tensor, "batch kv_heads seq head_dim"],
    value: Float[Tensor, "batch kv_heads seq value_dim"],
    first_keys: Int[Tensor, "batch seq"],
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads seq value_dim"]:
    """Attention of each example to itself alone; its cost grows with the examples, not the pack.

    `scaling` multiplies the scores (default head_dim ** -0.5), `softcap` caps them after that,
    `dropout` acts on the weights as given: pass 0 outside of training. Fewer key than query heads
    means grouped-query attention.
    """
    dtype = query.dtype
    rows = [example_lengths(row) for row in first_keys]
    if dtype != torch.float32 and query.device.type == "cpu" and _longest(rows) <= SHORT_EXAMPLE:
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    for row, lengths in enumerate(rows):
        here = slice(row, row + 1)
        # A plain split, because its backward writes all pieces into one gradient.
        pieces = zip(
            torch.split(query[here], lengths, 2),
            torch.split(key[here], lengths, 2),
            torch.split(value[here], lengths, 2),
            torch.split(first_keys[row], lengths),
            strict=True,
        )
        parts = [
            _attend_one(*piece, scaling=scaling, softcap=softcap, dropout=dropout)
            for piece in pieces
        ]
        outputs.append(torch.cat(parts, dim=2))
    return torch.cat(outputs).to(dtype)


def visible_keys(first_keys: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq seq"]:
    """Return the mask in full: [b, q, k] is True where query q sees key k."""
    keys = torch.arange(first_keys.shape[-1], device=first_keys.device)
    return (keys >= first_keys.unsqueeze(-1)) & (keys <= keys.unsqueeze(-1))


def first_keys_of(
    starts_example: Bool[Tensor, "batch seq"], *, window: int | None = None
) -> Int[Tensor, "batch seq"]:
    """Return each query's first visible key, given which positions begin an example.

    `window` is the number of keys a query sees at most, itself included; None = all.
    """
    positions = torch.arange(starts_example.shape[-1], device=starts_example.device)
    begins = (positions * starts_example).cummax(dim=-1).values
    return begins if window is None else torch.maximum(begins, positions - window + 1)


def example_lengths(first_keys: Int[Tensor, " seq"]) -> list[int]:
    """Return the lengths of the stretches that see nothing of each other."""
    positions = torch.arange(len(first_keys), device=first_keys.device)
    starts = (first_keys == positions).nonzero().squeeze(-1).tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], len(first_keys)], strict=True)]


def _longest(rows: list[list[int]]) -> int:
    return max(max(lengths) for lengths in rows)


def _attend_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first_keys: Tensor,
    *,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attention within one example, whose first position is `first_keys[0]`."""
    relative = (first_keys - first_keys[0]).unsqueeze(0)
    if softcap is not None:
        return packed_attention_reference(
            query, key, value, relative, scaling=scaling, softcap=softcap, dropout=dropout
        )
    windowed = bool(relative[0, -1] > 0)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=visible_keys(relative).unsqueeze(1) if windowed else None,
        dropout_p=dropout,
        scale=scaling,
        is_causal=not windowed,
        enable_gqa=query.shape[1] != key.shape[1],
    )
