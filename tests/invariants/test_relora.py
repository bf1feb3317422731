"""ReLoRA: rounds add up, the sum is one ordinary LoRA, and its rank is more than one round's."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from newtune.errors import ModelError
from newtune.model.head import LoraOutputHead, OutputHead, compute_loss_sum, install_head
from newtune.model.relora import (
    has_past,
    join_rounds,
    load_rounds,
    require_rounds,
    save_rounds,
    start_round,
)
from newtune.plan.parts import ReloraPlan, RestartPlan, SchedulePlan
from newtune.training.restarts import forget
from newtune.training.schedules import learning_rate_share
from runs import TinyRun, packed, plain_loss_sum
from tiny import tiny_llama

TOKENS = torch.tensor([[7, 8, 9, 10]])


def adapter(**lora):
    model = tiny_llama(seed=1)
    install_head(model)
    options = {"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = LoraConfig(**{**options, **lora})
    config._register_custom_module({OutputHead: LoraOutputHead})
    return get_peft_model(model, config).eval()


def learn(model):
    """Stand in for a round: draw what trains at random."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)


def layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_new_round_computes_the_same_and_trains_new_matrices(use_rslora):
    model = adapter(use_rslora=use_rslora)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    identities = {id(p) for p in model.parameters() if p.requires_grad}
    for round_ in (1, 2):
        learn(model)
        before, ended = logits(model), layers(model)[0].lora_A["default"].weight.clone()
        start_round(model)
        close(logits(model), before)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
        assert {id(p) for p in model.parameters() if p.requires_grad} == identities
        for layer in layers(model):
            assert not layer.lora_B["default"].weight.any()
            assert layer.r == {"default": 2, "past": 2 * round_}
        assert torch.equal(layers(model)[0].lora_A["past"].weight[-2:], ended)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_is_written_is_one_lora_that_peft_loads(tmp_path, use_rslora):
    model = adapter(use_rslora=use_rslora)
    for _ in range(2):
        learn(model)
        start_round(model)
    learn(model)
    save_rounds(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 6
    plain = PeftModel.from_pretrained(tiny_llama(seed=1), tmp_path).eval()
    close(logits(plain), logits(model))


def test_a_checkpoint_gives_past_and_present_back(tmp_path):
    model = adapter()
    learn(model)
    start_round(model)
    learn(model)
    save_rounds(model, tmp_path)
    weights, again = load_file(tmp_path / "adapter_model.safetensors"), adapter()
    load_rounds(again, weights)
    assert torch.equal(logits(again), logits(model))
    start_round(model)  # a later state goes back to an earlier one, with less of a past
    learn(model)
    load_rounds(model, weights)
    assert torch.equal(logits(model), logits(again))


def test_the_state_before_the_first_round_ended_comes_back(tmp_path):
    model = adapter()
    learn(model)
    model.save_pretrained(tmp_path)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = logits(model)
    start_round(model)
    learn(model)
    load_rounds(model, load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(logits(model), expected)
    assert not has_past(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_joined_rounds_are_an_adapter_like_any_other():
    model = adapter()
    learn(model)
    start_round(model)
    learn(model)
    expected = logits(model)
    join_rounds(model)
    assert not has_past(model)
    close(logits(model), expected)
    assert {layer.r["default"] for layer in layers(model)} == {4}
    assert model.peft_config["default"].r == 4


def test_the_sum_reaches_a_higher_rank_than_one_round(tmp_path):
    """Rank 2 in three rounds of a real run: the update has rank 6, that of one LoRA has 2."""
    ranks = {}
    for name, plan in (("one", None), ("three", ReloraPlan(3, "magnitude", 0.9))):
        run = TinyRun(tmp_path / name, steps=9, lora=True, training={"relora": plan})
        model = adapter().train()
        run.trainer(model).train()
        join_rounds(model)
        update = layers(model)[0].get_delta_weight("default")
        values = torch.linalg.svdvals(update)
        ranks[name] = int((values > 1e-5 * values[0]).sum())
    assert ranks == {"one": 2, "three": 6}


def test_an_adapted_embedding_is_refused():
    model = adapter(target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match=r"`model.embed_tokens`\) cannot be started anew"):
        require_rounds(model)


def test_an_adapted_head_computes_the_loss_of_all_rounds():
    model = adapter(target_modules=["q_proj", "lm_head"])
    learn(model)
    batch = packed(1)[0]
    before = compute_loss_sum(model, batch)[0]
    start_round(model)
    torch.testing.assert_close(compute_loss_sum(model, batch)[0], before)
    learn(model)
    plain = plain_loss_sum(model, batch)[0]
    torch.testing.assert_close(compute_loss_sum(model, batch)[0], plain)


# --- what the optimizer forgets


def after_a_step(values):
    parameter = torch.nn.Parameter(torch.zeros(2, 4))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.tensor(values)
    optimizer.step()
    return optimizer, optimizer.state[parameter]


GRADIENTS = [[1.0, -2.0, 3.0, -4.0], [5.0, -6.0, 7.0, -8.0]]


def test_the_places_of_the_largest_momentum_are_kept():
    optimizer, state = after_a_step(GRADIENTS)
    state["exp_avg_sq"][0, 0] = 100.0  # however large the scale
    forget(optimizer, ReloraPlan(1, "magnitude", 0.75))
    torch.testing.assert_close(state["exp_avg"], torch.tensor([[0.0, 0, 0, 0], [0, 0, 0.7, -0.8]]))
    assert (state["exp_avg_sq"] != 0).tolist() == (state["exp_avg"] != 0).tolist()
    assert state["step"] == 1


def test_random_places_are_kept_of_momentum_and_scale_alike():
    optimizer, state = after_a_step(GRADIENTS)
    torch.manual_seed(0)
    expected = torch.rand(2, 4) >= 0.5
    torch.manual_seed(0)
    forget(optimizer, ReloraPlan(1, "random", 0.5))
    assert torch.equal(state["exp_avg"] != 0, expected)
    assert torch.equal(state["exp_avg_sq"] != 0, expected)


def test_reset_forgets_all():
    optimizer, _ = after_a_step(GRADIENTS)
    forget(optimizer, ReloraPlan(1, "reset", 0.9))
    assert not optimizer.state


# --- the learning rate


def test_the_rate_goes_down_before_a_restart_and_up_after_it():
    plan = SchedulePlan("constant", 0, False, None, None, {}, RestartPlan(6, 2, 3))
    share = learning_rate_share(plan, total_steps=14)
    first = [1, 1, 1, 1, 2 / 3, 1 / 3]  # no warm-up: it is the run's own
    middle = [0, 1 / 2, 1, 1, 2 / 3, 1 / 3]
    last = [0, 1 / 2]  # no restart follows
    assert [share(step) for step in range(14)] == pytest.approx([*first, *middle, *last])


def test_the_rate_without_dents_goes_on_along_its_schedule():
    plain = SchedulePlan("linear", 2, False, None, None, {})
    dented = SchedulePlan("linear", 2, False, None, None, {}, RestartPlan(5, 1, 0))
    one, other = learning_rate_share(plain, 12), learning_rate_share(dented, 12)
    assert [other(step) for step in (0, 1, 4, 6, 11)] == [one(step) for step in (0, 1, 4, 6, 11)]
    assert other(5) == other(10) == 0
