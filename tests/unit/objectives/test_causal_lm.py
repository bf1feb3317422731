import math

import pytest
import torch

from newtune.objectives.causal_lm import causal_lm_loss, trained_tokens

X = -100


def test_labels_are_scored_against_the_position_before():
    logits = torch.zeros(1, 3, 2)
    logits[0, 0, 1] = math.log(3)  # p(1) = 3/4 at position 0, 1/2 elsewhere
    loss, count = causal_lm_loss(logits, torch.tensor([[0, 1, 0]]))
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert count.item() == 2


def test_masked_labels_and_the_first_position_do_not_count():
    labels = torch.tensor([[5, X, 7, 8], [X, X, X, X]])
    assert trained_tokens(labels).item() == 2


def test_nothing_trained_gives_zero_with_a_gradient():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    loss, count = causal_lm_loss(logits, torch.full((1, 3), X))
    loss.backward()
    assert loss.item() == count.item() == 0
    assert not logits.grad.any()


def test_the_sum_is_taken_in_float32():
    logits = torch.randn(1, 3, 4, dtype=torch.bfloat16)
    assert causal_lm_loss(logits, torch.tensor([[1, 2, 3]]))[0].dtype == torch.float32
