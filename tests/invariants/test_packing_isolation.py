"""Packed examples never see each other: same logits, loss and gradients as each alone."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from newtune.model.attention import register_attention
from newtune.plan.attention import PROVEN_FAMILIES
from tiny import tiny_model

FAMILIES = sorted(PROVEN_FAMILIES)
CASES = [
    (family, attention)
    for family in FAMILIES
    for attention in ("eager", "sdpa", "newtune_packed")
    if (family, attention) != ("gemma2", "sdpa")  # transformers refuses its soft-cap there
]
every_case = pytest.mark.parametrize(("family", "attention"), CASES)
our_case = pytest.mark.parametrize(
    ("family", "attention"),
    [(family, "newtune_packed") for family in FAMILIES] + [("llama", "eager"), ("llama", "sdpa")],
)

LENGTHS = (3, 11, 1, 7)
"""One is longer than the tiny models' sliding window of 5, one is a single token."""


def build(family, attention):
    register_attention()
    return tiny_model(family, attn_implementation=attention).train()


def examples(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(6, 384, (1, n), generator=generator) for n in lengths]


def logits_alone(model, tokens):
    return model(tokens, use_cache=False).logits


def logits_packed(model, parts, **further):
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts]).unsqueeze(0)
    tokens = torch.cat(parts, dim=1)
    packed = model(tokens, position_ids=positions, use_cache=False, **further).logits
    return packed.split([part.shape[1] for part in parts], dim=1)


def loss_of(parts, logits):
    pairs = [(a[0, 1:], b[0, :-1]) for a, b in zip(parts, logits, strict=True)]
    return sum(cross_entropy(scores, labels, reduction="sum") for labels, scores in pairs)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def assert_all_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_case
def test_packed_equals_unpacked_in_logits_loss_and_gradients(family, attention):
    model, parts = build(family, attention), examples()
    alone = [logits_alone(model, part) for part in parts]
    packed = logits_packed(model, parts)
    assert_all_close(packed, alone)
    ours, theirs = loss_of(parts, packed), loss_of(parts, alone)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)
    assert_all_close(gradients(model, ours), gradients(model, theirs))


@our_case
def test_other_tokens_in_one_example_do_not_change_another(family, attention):
    model, parts = build(family, attention), examples()
    before = logits_packed(model, parts)
    parts[1] = examples(seed=1)[1]
    after = logits_packed(model, parts)
    for index in (0, 2, 3):
        torch.testing.assert_close(before[index], after[index], rtol=0, atol=1e-6)
    assert (before[1] - after[1]).abs().max() > 0.1


@our_case
def test_padding_as_its_own_example_does_not_matter(family, attention):
    model, parts = build(family, attention), examples()
    padding = torch.full((1, 9), 3)
    padded = logits_packed(model, [*parts, padding])[:-1]
    assert_all_close(padded, logits_packed(model, parts))


@our_case
def test_rows_of_a_batch_keep_their_own_boundaries(family, attention):
    model, parts = build(family, attention), examples((4, 9, 7, 6))
    alone = [logits_alone(model, part) for part in parts]
    tokens = torch.cat([torch.cat(parts[:2], 1), torch.cat(parts[2:], 1)])
    positions = torch.stack([
        torch.cat([torch.arange(4), torch.arange(9)]),
        torch.cat([torch.arange(7), torch.arange(6)]),
    ])  # fmt: skip
    both = model(tokens, position_ids=positions, use_cache=False).logits
    packed = [*both[:1].split([4, 9], 1), *both[1:].split([7, 6], 1)]
    assert_all_close(packed, alone)


@our_case
def test_flash_boundaries_beside_the_positions_change_nothing(family, attention):
    model, parts = build(family, attention), examples()
    ends = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    further = {
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
        "max_length_q": max(LENGTHS), "max_length_k": max(LENGTHS),
    }  # fmt: skip
    assert_all_close(logits_packed(model, parts, **further), logits_packed(model, parts))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_prompt_with_a_cache_generates_as_with_eager_attention(family):
    tokens = torch.cat(examples((6,)) + examples((6,), seed=1))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    answers = [
        build(family, attention)
        .eval()
        .generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
        for attention in ("eager", "newtune_packed")
    ]
    assert torch.equal(*answers)
