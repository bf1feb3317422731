"""Parts of a sequence for all heads become all of the sequence for some heads, and back.

    each of n processes: [batch, heads, seq / n, dim]  ⇄  [batch, heads / n, seq, dim]

Every process sends each other one an equal part, once per direction. (DeepSpeed-Ulysses: Jacobs et
al. 2023, arXiv:2309.14509.)
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.distributed import ProcessGroup


class _Exchange(torch.autograd.Function):
    """Send part i of the first axis to process i; what comes from process i is part i.

    Exchanged back in the same way, the gradients go where the values came from.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        distributed.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradients[0], ctx.group), None


class _Total(torch.autograd.Function):
    """The sum of every process's numbers, with which all of them go on alike."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: ProcessGroup) -> Tensor:
        ctx.processes = group.size()
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # each process's total holds this one's values, and each goes on with it in the same way
        return gradients[0] * ctx.processes, None


def to_heads(
    tensors: Sequence[Float[Tensor, "batch _ part dim"]], group: ProcessGroup
) -> list[Float[Tensor, "batch _ seq dim"]]:
    """Return the whole sequence of this process's heads, for tensors with heads of their own."""
    processes = group.size()
    shares = [tensor.shape[1] // processes for tensor in tensors]
    chunks = [_dealt_out(tensor, processes) for tensor in tensors]
    received = _exchange(torch.cat(chunks, dim=2).movedim(1, 0), group)
    whole = received.movedim(0, 2).flatten(2, 3)  # [batch, heads, process, part, dim]
    return list(torch.split(whole, shares, dim=1))


def to_parts(
    tensor: Float[Tensor, "batch seq share dim"], group: ProcessGroup
) -> Float[Tensor, "batch part heads dim"]:
    """Return this process's part of the sequence, for all heads."""
    received = _exchange(_dealt_out(tensor, group.size()).movedim(1, 0), group)
    return received.movedim(0, 2).flatten(2, 3)  # [batch, part, process, share, dim]


def total(values: Tensor, group: ProcessGroup) -> Tensor:
    """Return the sum over the processes of a group, differentiable as what all of them computed."""
    summed: Tensor = _Total.apply(values, group)  # type: ignore[no-untyped-call]
    return summed


def _exchange(parts: Tensor, group: ProcessGroup) -> Tensor:
    received: Tensor = _Exchange.apply(parts, group)  # type: ignore[no-untyped-call]
    return received


def _dealt_out(tensor: Tensor, processes: int) -> Tensor:
    """Return a tensor with its second axis as two: process, and what is left for each."""
    batch, whole, *rest = tensor.shape
    return tensor.reshape(batch, processes, whole // processes, *rest)
