"""Attention for packed sequences, registered with transformers: `newtune_packed` and `xformers`.

transformers asks a mask function once per forward and hands what it returns to every layer. Ours
returns the mask in compact form where it can, one integer per query (`kernels/packed_attention`),
so that no layer needs to know positions, boundaries or windows; a KV cache, a padding mask or an
unusual mask gets the ordinary boolean mask and ordinary sdpa.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from newtune.errors import ModelError
from newtune.kernels.packed_attention import first_keys_of, packed_attention
from newtune.kernels.xformers_attention import xformers_attention
from newtune.plan.attention import PACKED_ATTENTION

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

KERNELS: Mapping[str, Callable[..., Tensor]] = {
    PACKED_ATTENTION: packed_attention,
    "xformers": xformers_attention,
}
"""Name → what attends within each example of a row."""


def register_attention() -> None:
    """Make every name of `KERNELS` an `attn_implementation` of transformers; may be repeated."""
    for name, kernel in KERNELS.items():
        AttentionInterface.register(name, partial(packed_attention_forward, kernel=kernel))
        AttentionMaskInterface.register(name, packed_mask)


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    *,
    mask_function: MaskFunction,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor | None:
    """Return `first_keys` as [batch, 1, seq, 1] integers, or sdpa's boolean mask.

    transformers' mask functions answer "may query q see key k?"; asked about each position and
    the one before it, they tell where an example begins, whatever the model calls its positions.
    """
    whole = attention_mask is None and kv_length == q_length > 1 and not (q_offset or kv_offset)
    if whole and not use_vmap:
        rows = torch.arange(batch_size, device=device).view(-1, 1, 1, 1)
        head = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=device)
        later = torch.arange(1, q_length, device=device).view(1, 1, -1, 1)
        sees_next = mask_function(rows, head, later - 1, later)
        sees_previous = mask_function(rows, head, later, later - 1)
        if not sees_next.any():  # causal, not bidirectional somewhere
            seen = sees_previous.expand(batch_size, 1, q_length - 1, 1)[:, 0, :, 0]
            starts = nn.functional.pad(~seen, (1, 0), value=True)
            return first_keys_of(starts, window=local_size)[:, None, :, None]
    mask: Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        device=device,
        **options,
    )
    return mask


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    kernel: Callable[..., Tensor] = packed_attention,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend per example; the result is [batch, seq, heads, head_dim] as transformers wants it.

    Raises:
        ModelError: the layer asks for something this attention does not do.
    """
    for name in ("s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ModelError(
                f"attention per packed example does not know the attention sinks or biases of "
                f"{type(module).__name__} (`{name}`). Set `attn_implementation: eager`."
            )
    first_keys = _first_keys(attention_mask, query, key, module, options)
    softcap = options.get("softcap")
    if first_keys is not None:
        output = kernel(
            query, key, value, first_keys, scaling=scaling, softcap=softcap, dropout=dropout
        )
        return output.transpose(1, 2).contiguous(), None
    if softcap is not None:
        return _softcapped(query, key, value, attention_mask, scaling, softcap, dropout), None
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, options.get("is_causal")
    )
    return output, None


def _first_keys(
    mask: Tensor | None,
    query: Tensor,
    key: Tensor,
    module: nn.Module,
    options: dict[str, Any],
) -> Tensor | None:
    """Return [batch, seq] first keys if this call is causal over whole sequences, else None."""
    if mask is not None:
        compact = not mask.is_floating_point() and mask.dtype != torch.bool
        return mask[:, 0, :, 0].expand(query.shape[0], -1) if compact else None
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    boundaries = options.get("cu_seq_lens_q")
    # Without a mask from us the model made none; given boundaries must then still be kept.
    if boundaries is None or not causal or query.shape[2] != key.shape[2]:
        return None
    starts = torch.zeros(query.shape[0], query.shape[2], dtype=torch.bool, device=query.device)
    starts[:, boundaries[:-1].long()] = True
    return first_keys_of(starts, window=options.get("sliding_window"))


def _softcapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
    dropout: float,
) -> Tensor:
    """Attention with capped scores under an ordinary boolean mask (generation of Gemma 2)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    output = nn.functional.dropout(weights, dropout) @ value
    return output.transpose(1, 2).contiguous()
