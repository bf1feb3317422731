"""Attention per example equals attention under the full mask, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newtune.kernels.packed_attention import (
    example_lengths,
    first_keys_of,
    packed_attention,
    packed_attention_reference,
    visible_keys,
)


def starts_of(*rows):
    return torch.stack([
        torch.cat([torch.arange(n) == 0 for n in lengths]) for lengths in rows
    ])  # fmt: skip


def test_first_keys_of_two_examples_with_and_without_a_window():
    starts = starts_of((3, 2))
    assert first_keys_of(starts).tolist() == [[0, 0, 0, 3, 3]]
    assert first_keys_of(starts, window=2).tolist() == [[0, 0, 1, 3, 3]]


def test_visible_keys_in_full():
    assert visible_keys(torch.tensor([[0, 0, 2]])).int().tolist() == [
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    ]


def test_example_lengths():
    assert example_lengths(torch.tensor([0, 0, 0, 3, 4, 4])) == [3, 1, 2]


@given(
    rows=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 8),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    softcap=st.none() | st.just(1.5),
    scaling=st.none() | st.just(0.3),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_reference(rows, lengths, window, heads, softcap, scaling):
    query_heads, kv_heads = heads
    size = sum(lengths)
    first_keys = first_keys_of(starts_of(*[lengths] * rows), window=window)
    shapes = [(rows, count, size, 8) for count in (query_heads, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    weights = torch.randn(rows, query_heads, size, 8)
    results = []
    for function in (packed_attention, packed_attention_reference):
        output = function(*inputs, first_keys, scaling=scaling, softcap=softcap)
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_comes_back_as_bfloat16():
    inputs = [torch.randn(1, 2, 5, 8, dtype=torch.bfloat16) for _ in range(3)]
    first_keys = first_keys_of(starts_of((3, 2)))
    ours = packed_attention(*inputs, first_keys)
    exact = packed_attention_reference(*[x.float() for x in inputs], first_keys)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("function", [packed_attention, packed_attention_reference])
def test_dropout_thins_the_weights_and_keeps_their_mean(function):
    value = torch.ones(1, 1, 400, 1)
    query = torch.zeros(1, 1, 400, 1)
    output = function(query, query, value, torch.zeros(1, 400, dtype=torch.long), dropout=0.5)
    assert output[0, 0, 200:].mean().item() == pytest.approx(1, abs=0.05)
    assert output[0, 0, 200:].std() > 0.01
