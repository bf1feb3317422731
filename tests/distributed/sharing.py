"""One process of several that share sequences: compares losses and gradients with its own alone.

torchrun --nproc_per_node 2 sharing.py RESULT.json
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from transformers import PreTrainedModel

from newtune.data.collate import collate
from newtune.model.attention import register_attention
from newtune.model.head import compute_loss_sum, install_head
from newtune.model.shared_sequence import SharedSequence
from newtune.plan.attention import PROVEN_FAMILIES
from newtune.types import IGNORE_INDEX, Batch, Example
from tiny import VOCABULARY, tiny_model

KINDS: Mapping[str, Mapping[str, Any]] = {
    "llama, sdpa": {"attention": "sdpa"},
    "llama, recomputed": {"recomputes": True},
    "llama, one key head": {"num_key_value_heads": 1},
    "llama, rows": {"flatten": False},
    "llama, rows, sdpa": {"flatten": False, "attention": "sdpa"},
    "llama, 15 tokens": {"lengths": ((8, 7),)},
    "llama, nothing trained in the second half": {"lengths": ((3, 2, 9),), "trained": 2},
    **{family: {} for family in sorted(PROVEN_FAMILIES)},
}
LENGTHS = ((9, 5, 2), (6, 4))


def batch_of(lengths: tuple[tuple[int, ...], ...], *, flatten: bool, trained: int) -> Batch:
    """Return packs of random examples, of which the first `trained` of each pack are trained."""
    draw = np.random.default_rng(3)
    packs = []
    for pack in lengths:
        examples = []
        for place, length in enumerate(pack):
            tokens = draw.integers(VOCABULARY, size=length)
            labels = tokens if place < trained else np.full(length, IGNORE_INDEX)
            examples.append(Example(tokens, labels))
        packs.append(examples)
    return collate(packs, pad_id=3, pad_to=None, flatten=flatten)


def gradients(model: PreTrainedModel) -> torch.Tensor:
    """Return all gradients in a row, and forget them."""
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(found)


def compare(
    name: str,
    *,
    attention: str = "newtune_packed",
    recomputes: bool = False,
    flatten: bool = True,
    lengths: tuple[tuple[int, ...], ...] = LENGTHS,
    trained: int = 9,
    **changes: Any,
) -> dict[str, float]:
    """Return how far loss and gradients are from those of one process."""
    model = tiny_model(name.split(",")[0], **changes).train()
    install_head(model)
    model.set_attn_implementation(attention)
    batch = batch_of(lengths, flatten=flatten, trained=trained)
    loss, count = compute_loss_sum(model, batch)
    loss.backward()
    alone = gradients(model)
    if recomputes:
        model.activation_checkpointing_enable({"use_reentrant": False})
    shared = SharedSequence.of(model, distributed.group.WORLD)
    shared_loss, shared_count = shared.loss_sum(model, batch)
    shared_loss.backward()
    together = gradients(model)
    distributed.all_reduce(together)
    together /= distributed.get_world_size()  # as DDP averages
    again, _ = compute_loss_sum(model, batch)
    return {
        "loss": abs(shared_loss.item() / loss.item() - 1),
        "gradient": float((together - alone).abs().max() / alone.abs().max()),
        "count": abs(shared_count.item() - count.item()),
        "whole again": abs(again.item() / loss.item() - 1),
    }


def main() -> None:
    """Compare every kind, write what the first process found."""
    distributed.init_process_group("gloo")
    register_attention()
    found = {kind: compare(kind, **options) for kind, options in KINDS.items()}
    if distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
