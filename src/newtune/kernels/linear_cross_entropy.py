"""Cross entropy of a linear layer's output, summed, without ever holding all the logits.

The logits of 2,048 tokens over a vocabulary of 49,152 fill 400 MB in float32, and the usual path
keeps three such tensors. Here they exist for a few tokens at a time: each chunk gives its loss and
at once its gradients, so that backward only scales what forward left.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from newtune.types import IGNORE_INDEX

CHUNK_LOGITS = 1 << 24
"""Logits held at a time: 64 MiB in float32. Larger chunks were not faster on CPU."""


def linear_cross_entropy_reference(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, " tokens"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    low_rank: tuple[Float[Tensor, "tokens rank"], Float[Tensor, "vocab rank"]] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """What `linear_cross_entropy` computes, as one would write it; `chunk_tokens` is unused."""
    logits = F.linear(hidden, weight, bias)
    if low_rank is not None:
        logits = logits + F.linear(*low_rank)
    logits = logits.to(_loss_dtype(logits.dtype)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")


def linear_cross_entropy(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, " tokens"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    low_rank: tuple[Float[Tensor, "tokens rank"], Float[Tensor, "vocab rank"]] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Sum of -log softmax(softcap(scale * (hidden @ weight.T + bias)))[label], in nats.

    `labels[t]` is scored against `hidden[t]`: the caller has shifted them. Tokens labelled
    IGNORE_INDEX count nothing; none left gives 0 with zero gradients. `low_rank` is a pair (x, b)
    whose product x @ b.T is added to the logits (a LoRA on the layer). `softcap(z)` is
    `softcap * tanh(z / softcap)`, left out when None.

    Matrix products run in the autocast type if there is one, else in the inputs' own; everything
    between logits and loss, and the sums over chunks, in float32 (float64 for float64 inputs).
    Gradients are computed only for the inputs that need one: a frozen `weight` costs nothing.
    """
    wanted = labels != IGNORE_INDEX
    if not bool(wanted.all()):
        kept = wanted.nonzero().squeeze(-1)
        labels, hidden = labels[kept], hidden[kept]
        low_rank = None if low_rank is None else (low_rank[0][kept], low_rank[1])
    extra_hidden, extra_weight = (None, None) if low_rank is None else low_rank
    inputs = (hidden, weight, bias, extra_hidden, extra_weight)
    differentiable = torch.is_grad_enabled()
    options = _Options(
        softcap=softcap,
        scale=scale,
        chunk_tokens=chunk_tokens or max(1, CHUNK_LOGITS // weight.shape[0]),
        matmul_dtype=_matmul_dtype(hidden, weight),
        needs_grad=tuple(differentiable and x is not None and x.requires_grad for x in inputs),
    )
    loss: Tensor = _LinearCrossEntropy.apply(*inputs, labels.long(), options)  # type: ignore[no-untyped-call]
    return loss


class _Options(NamedTuple):
    softcap: float | None
    scale: float
    chunk_tokens: int
    matmul_dtype: torch.dtype
    needs_grad: tuple[bool, ...]
    """For hidden, weight, bias, extra hidden, extra weight."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward leaves the gradients of the sum; backward multiplies them by what comes in."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *inputs, labels, options = arguments
        with torch.autocast(inputs[0].device.type, enabled=False):
            loss, gradients = _loss_and_gradients(inputs, labels, options)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = outputs
        gradients = (None if g is None else g * factor.to(g.dtype) for g in ctx.saved_tensors)
        return (*gradients, None, None)


def _loss_and_gradients(
    inputs: list[Tensor | None], labels: Tensor, options: _Options
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the sum of the losses and its gradients, None where none is needed."""
    hidden, weight, bias, extra_hidden, extra_weight = (
        None if x is None else x.to(options.matmul_dtype) for x in inputs
    )
    assert hidden is not None
    assert weight is not None
    sum_dtype = _loss_dtype(options.matmul_dtype)
    # Rows of `hidden` are written once, so their own type will do; the others are summed over
    # chunks, and 16 bits would lose the small ones.
    of_rows = (True, False, False, True, False)
    gradients = [
        torch.zeros_like(x, dtype=x.dtype if rows else sum_dtype)
        if needed and x is not None
        else None
        for x, rows, needed in zip(inputs, of_rows, options.needs_grad, strict=True)
    ]
    grad_hidden, grad_weight, grad_bias, grad_extra_hidden, grad_extra_weight = gradients
    loss = torch.zeros((), dtype=sum_dtype, device=hidden.device)
    for start in range(0, len(labels), options.chunk_tokens):
        rows = slice(start, start + options.chunk_tokens)
        logits = F.linear(hidden[rows], weight, bias)
        if extra_hidden is not None and extra_weight is not None:
            logits = logits + F.linear(extra_hidden[rows], extra_weight)
        chunk_loss, grad = _cross_entropy(logits.to(sum_dtype), labels[rows], options)
        loss += chunk_loss
        if grad is None:
            continue
        grad = grad.to(options.matmul_dtype)
        if grad_hidden is not None:
            grad_hidden[rows] = grad @ weight
        if grad_extra_hidden is not None and extra_weight is not None:
            grad_extra_hidden[rows] = grad @ extra_weight
        if grad_weight is not None:
            grad_weight += grad.T @ hidden[rows]
        if grad_extra_weight is not None and extra_hidden is not None:
            grad_extra_weight += grad.T @ extra_hidden[rows]
        if grad_bias is not None:
            grad_bias += grad.sum(0, dtype=sum_dtype)
    return loss, [
        None if g is None or x is None else g.to(x.dtype)
        for g, x in zip(gradients, inputs, strict=True)
    ]


def _cross_entropy(
    logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"], options: _Options
) -> tuple[Tensor, Tensor | None]:
    """Return a chunk's loss and its gradient at the layer's output; `logits` is overwritten."""
    if options.scale != 1.0:
        logits.mul_(options.scale)
    slope = None
    if options.softcap is not None:
        logits.div_(options.softcap).tanh_()
        if any(options.needs_grad):
            slope = 1 - logits.square()
        logits.mul_(options.softcap)
    index = labels.unsqueeze(-1)
    log_normaliser = logits.logsumexp(dim=-1, keepdim=True)
    loss = (log_normaliser - logits.gather(-1, index)).sum()
    if not any(options.needs_grad):
        return loss, None
    grad = logits.sub_(log_normaliser).exp_()  # the softmax
    grad.scatter_add_(-1, index, grad.new_full(index.shape, -1.0))
    if slope is not None:
        grad.mul_(slope)
    if options.scale != 1.0:
        grad.mul_(options.scale)
    return loss, grad


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _loss_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
