"""Padding a batch to a multiple changes its shape and nothing else."""

import pytest
import torch

from newtune.data.collate import collate
from newtune.model.attention import register_attention
from newtune.model.head import compute_loss_sum, install_head
from runs import example
from tiny import tiny_model


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "newtune_packed"])
def test_loss_and_gradients_are_the_same_with_padding_to_a_multiple(attention, flatten):
    register_attention()
    model = tiny_model("llama", attn_implementation=attention)
    install_head(model)
    packs = [[example(0), example(1, answer=9)], [example(2)]]
    results = []
    for multiple_of in (None, 64):
        batch = collate(packs, pad_id=3, pad_to=None, flatten=flatten, multiple_of=multiple_of)
        loss, count = compute_loss_sum(model, batch)
        results.append((batch["input_ids"].shape[1], loss, int(count)))
        results[-1] += torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert results[0][0] % 64 != 0
    assert results[1][0] == 64
    assert results[0][2] == results[1][2]
    torch.testing.assert_close(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][3:], results[1][3:], rtol=1e-4, atol=1e-6)
