"""A digest that tells one model's weights from another's."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLED_VALUES = 64
"""Values hashed of every tensor, its first ones: grown embedding rows stand at the end."""


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> bytes:
    """Return the SHA-256 over name, dtype, shape but for the rows, and first values of each."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda named: named[0]):
        values = tensor.detach().flatten()[:SAMPLED_VALUES].cpu()
        digest.update(f"{name} {tuple(tensor.shape[1:])} {tensor.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.digest()
