"""The loss computed by the output head equals cross entropy over the model's own logits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from newtune.model.adapters import attach_adapter
from newtune.model.head import OutputHead, compute_loss_sum, install_head, shift_labels
from newtune.plan.parts import AdapterPlan
from tiny import FAMILIES, tiny_model

LENGTHS = (5, 1, 8)
ADAPTER = {
    "kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("q_proj",),
    "layers": None, "modules_to_save": (), "fan_in_fan_out": False, "use_rslora": False,
    "use_dora": False, "init": True, "continue_from": None,
}  # fmt: skip


def batch(rows=1, trained=True):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(6, 384, (rows, sum(LENGTHS)), generator=generator)
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).expand(rows, -1)
    labels = tokens.clone()
    labels[:, [1, 6, 7]] = -100
    if not trained:
        labels.fill_(-100)
    return {"input_ids": tokens, "labels": labels, "position_ids": positions}


def usual_loss_sum(model, given):
    """Full logits, as the model itself post-processes them, example by example."""
    logits = model(given["input_ids"], position_ids=given["position_ids"], use_cache=False).logits
    total, count, start = 0.0, 0, 0
    for length in LENGTHS:
        here = slice(start, start + length)
        scores, labels = logits[:, here][:, :-1], given["labels"][:, here][:, 1:]
        total = total + cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")
        count += int((labels != -100).sum())
        start += length
    return total, count


def gradients(model, loss):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, trained, allow_unused=True)


def assert_same_loss_and_gradients(model, given):
    ours, count = compute_loss_sum(model, given)
    theirs, expected_count = usual_loss_sum(model, given)
    assert count.item() == expected_count
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        if a is None or b is None:
            assert a is None
            assert b is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def with_head(family, **config):
    model = tiny_model(family, **config).eval()  # several have dropout or jitter by default
    install_head(model)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    assert_same_loss_and_gradients(with_head(family), batch(rows=2))


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
def test_one_row(family):
    assert_same_loss_and_gradients(with_head(family), batch(rows=1))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_weights(tied):
    model = with_head("llama", tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert_same_loss_and_gradients(model, batch())


def test_the_head_keeps_parameter_name_and_logits():
    plain, headed = tiny_model("llama"), with_head("llama")
    assert list(plain.state_dict()) == list(headed.state_dict())
    tokens = torch.tensor([[7, 8, 9]])
    assert torch.equal(plain(tokens).logits, headed(tokens).logits)
    assert headed.get_output_embeddings() is headed.lm_head


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "granite"])
@pytest.mark.parametrize("change", [
    {"target_modules": ("q_proj", "lm_head")},
    {"target_modules": ("q_proj", "lm_head"), "use_rslora": True},
    {"modules_to_save": ("lm_head",)},
    {"modules_to_save": ("embed_tokens", "lm_head")},
])  # fmt: skip
def test_an_adapter_on_the_head(family, change):
    plan = AdapterPlan(**{**ADAPTER, **change})
    model = attach_adapter(with_head(family).requires_grad_(False), plan)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide the gradient of A
            torch.nn.init.normal_(parameter)
    assert_same_loss_and_gradients(model, batch())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_trained_rows_of_added_tokens(family):
    plan = AdapterPlan(**ADAPTER)
    model = with_head(family).requires_grad_(False)
    peft_model = attach_adapter(model, plan, new_token_ids=[9, 380])
    assert_same_loss_and_gradients(peft_model, batch())
    trained = {n for n, p in peft_model.named_parameters() if p.requires_grad and "token" in n}
    assert len(trained) == (2 if family == "llama" else 1)  # a tied head shares the rows


def test_a_disabled_adapter_gives_the_base_loss():
    base = with_head("llama")
    before, _ = compute_loss_sum(base, batch())
    plan = AdapterPlan(**{**ADAPTER, "target_modules": ("q_proj", "lm_head")})
    model = attach_adapter(base, plan)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    changed, _ = compute_loss_sum(model, batch())
    with model.disable_adapter():
        disabled, _ = compute_loss_sum(model, batch())
    assert abs(changed.item() - before.item()) > 0.1
    torch.testing.assert_close(disabled, before)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_the_models_own_settings_are_back_afterwards(family):
    model = with_head(family)
    before, tokens = model.config.to_dict(), torch.tensor([[7, 8, 9]])
    logits = model(tokens).logits
    compute_loss_sum(model, batch())
    assert model.config.to_dict() == before
    assert torch.equal(model(tokens).logits, logits)


def test_no_trained_token_gives_every_parameter_a_zero_gradient():
    model = with_head("llama")
    loss, count = compute_loss_sum(model, batch(trained=False))
    loss.backward()
    assert (loss.item(), count.item()) == (0, 0)
    assert all(torch.count_nonzero(p.grad) == 0 for p in model.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    plain, saving = with_head("llama"), with_head("llama")
    options = {"use_reentrant": reentrant}
    saving.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    for model in (plain, saving):
        compute_loss_sum(model, batch())[0].backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_autocast_over_frozen_bfloat16_comes_near_float32():
    plan = AdapterPlan(**ADAPTER)
    exact = attach_adapter(with_head("llama"), plan)
    rounded = attach_adapter(with_head("llama").bfloat16(), plan)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = compute_loss_sum(rounded, batch())
    theirs, _ = compute_loss_sum(exact, batch())
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=0)
    assert all(p.grad is not None for p in rounded.parameters() if p.requires_grad)


def test_a_first_token_is_not_scored_from_the_example_before():
    # positions of two packed examples: [0 1 2 | 0 1]
    labels, positions = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 2, 0, 1]])
    assert shift_labels(labels, positions).tolist() == [[6, 7, -100, 9, -100]]


def test_rows_are_shifted_each_for_itself():
    labels, positions = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[0, 1], [0, 1]])
    assert shift_labels(labels, positions).tolist() == [[6, -100], [8, -100]]


def test_the_head_survives_an_adapter_of_peft_alone():
    model = get_peft_model(with_head("llama"), LoraConfig(target_modules=["q_proj"]))
    assert isinstance(model.base_model.model.lm_head, OutputHead)
    assert_same_loss_and_gradients(model, batch())
