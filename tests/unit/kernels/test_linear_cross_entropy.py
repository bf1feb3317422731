"""The chunked loss equals the plain one, in value and in every gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newtune.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)

OPTIONS = [
    {},
    {"softcap": 2.0},
    {"scale": 0.3},
    {"scale": 0.7, "softcap": 1.5},
]


def problem(tokens=11, vocab=17, hidden=6, rank=3, dtype=torch.float32, ignored=(0, 4)):
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    labels = torch.randint(vocab, (tokens,), generator=generator)
    labels[[i for i in ignored if i < tokens]] = -100
    pair = (draw(tokens, rank), draw(vocab, rank))
    return {"hidden": draw(tokens, hidden), "weight": draw(vocab, hidden), "labels": labels,
            "bias": draw(vocab), "low_rank": pair}  # fmt: skip


def leaves(arguments):
    low_rank = arguments["low_rank"] or ()
    return [x for x in (arguments["hidden"], arguments["weight"], arguments["bias"], *low_rank)
            if x is not None]  # fmt: skip


def loss_and_gradients(function, arguments, **options):
    loss = function(**arguments, **options)
    return [loss, *torch.autograd.grad(2.5 * loss, leaves(arguments))]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("without", [(), ("bias",), ("low_rank",), ("bias", "low_rank")])
def test_loss_and_gradients_equal_the_reference(options, without):
    arguments = problem() | dict.fromkeys(without)
    fused = loss_and_gradients(linear_cross_entropy, arguments, chunk_tokens=4, **options)
    plain = loss_and_gradients(linear_cross_entropy_reference, arguments, **options)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@given(
    tokens=st.integers(0, 9), vocab=st.integers(1, 12), hidden=st.integers(1, 5),
    chunk=st.integers(1, 10), ignored=st.sets(st.integers(0, 8)),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_shape_and_any_mask(tokens, vocab, hidden, chunk, ignored):
    arguments = problem(tokens, vocab, hidden, ignored=ignored)
    fused = loss_and_gradients(linear_cross_entropy, arguments, chunk_tokens=chunk)
    plain = loss_and_gradients(linear_cross_entropy_reference, arguments)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_those_of_finite_differences(options):
    arguments = problem(tokens=5, vocab=4, hidden=3, rank=2, dtype=torch.float64)

    def loss(hidden, weight, bias, extra_hidden, extra_weight):
        return linear_cross_entropy(
            hidden, weight, arguments["labels"], bias=bias,
            low_rank=(extra_hidden, extra_weight), chunk_tokens=2, **options,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves(arguments))


def test_bfloat16_is_as_near_to_float32_as_the_plain_path():
    exact = problem(tokens=64, vocab=300, hidden=32)
    rounded = {k: v for k, v in exact.items() if k != "low_rank"} | {"low_rank": None}
    for name in ("hidden", "weight", "bias"):
        rounded[name] = exact[name].detach().bfloat16().requires_grad_()
    truth = {k: v.detach().float().requires_grad_() if k in ("hidden", "weight", "bias") else v
             for k, v in rounded.items()}  # fmt: skip
    fused = loss_and_gradients(linear_cross_entropy, rounded, chunk_tokens=16)
    plain = loss_and_gradients(linear_cross_entropy_reference, rounded)
    exact_values = loss_and_gradients(linear_cross_entropy_reference, truth)
    assert [x.dtype for x in fused] == [torch.float32] + [torch.bfloat16] * 3
    for ours, theirs, true in zip(fused, plain, exact_values, strict=True):
        error, usual = (ours.float() - true).norm(), (theirs.float() - true).norm()
        assert error <= 1.1 * usual + 1e-3 * true.norm()


def test_one_uniform_token_costs_log_vocab():
    loss = linear_cross_entropy(torch.zeros(1, 4), torch.zeros(8, 4), torch.tensor([3]))
    assert loss.item() == pytest.approx(math.log(8))


def test_a_frozen_weight_gets_no_gradient():
    arguments = problem()
    arguments["weight"].requires_grad_(False)
    linear_cross_entropy(**arguments).backward()
    assert arguments["weight"].grad is None
    assert arguments["hidden"].grad is not None


def test_no_trained_token_gives_zero_loss_and_zero_gradients():
    arguments = problem(ignored=range(11))
    loss, *gradients = loss_and_gradients(linear_cross_entropy, arguments)
    assert loss.item() == 0
    assert all(torch.count_nonzero(g) == 0 for g in gradients)


def test_autocast_multiplies_in_its_own_type_and_returns_float32():
    arguments = problem() | {"bias": None, "low_rank": None}
    with torch.autocast("cpu", torch.bfloat16):
        fused = loss_and_gradients(linear_cross_entropy, arguments, chunk_tokens=4)
        plain = loss_and_gradients(linear_cross_entropy_reference, arguments)
    assert {x.dtype for x in fused} == {torch.float32}
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=3e-2)


def test_mixed_types_without_autocast():
    arguments = problem() | {"bias": None, "low_rank": None}
    arguments["weight"] = arguments["weight"].detach().bfloat16()
    linear_cross_entropy(**arguments).backward()
    assert arguments["hidden"].grad.dtype == torch.float32


def test_without_gradients_the_value_is_the_same():
    arguments = problem()
    with torch.no_grad():
        silent = linear_cross_entropy(**arguments)
    torch.testing.assert_close(silent, linear_cross_entropy(**arguments))
    assert not silent.requires_grad
