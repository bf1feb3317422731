import dataclasses
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from newtune.config.choices import OPTIMIZERS, REFUSED_OPTIMIZERS
from newtune.errors import ConfigError, SetupError
from newtune.plan.parts import LoraPlusPlan, OptimizerPlan
from newtune.training import optim
from newtune.training.arguments import training_arguments
from newtune.training.muon import Joined
from newtune.training.optim import build_optimizer, check_optimizer, parameter_groups
from newtune.training.optimizer_state import load_named_state, named_state
from runs import TinyRun
from tiny import tiny_llama

PLAN = OptimizerPlan("adamw_torch", 0.1, 0.0, 0.9, 0.999, 1e-8, {}, 0.0)


def build(tmp_path, model, **changes):
    plan = dataclasses.replace(PLAN, **changes)
    run = TinyRun(tmp_path, optimizer=changes)
    return build_optimizer(plan, model, training_arguments(run.plan(), tmp_path))


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))


def step(optimizer, model, gradient=1.0):
    model.weight.grad = torch.tensor([gradient])
    optimizer.step()
    return model.weight.item()


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused"])
def test_adamw_by_hand(tmp_path, name):
    # first step of Adam: m/(1-b1) = g, v/(1-b2) = g², so w ← w (1 - lr·decay) - lr·g/(|g|+eps)
    model = Weight()
    optimizer = build(tmp_path, model, name=name, weight_decay=0.5, epsilon=1.0)
    assert step(optimizer, model) == pytest.approx(2 * (1 - 0.05) - 0.1 * 1 / (1 + 1))


def test_betas_by_hand(tmp_path):
    model = Weight()
    optimizer = build(tmp_path, model, beta1=0.5, beta2=0.75)
    after_one = step(optimizer, model, 1.0)
    m, v = 0.5 * 0.5 + 0.5 * 3, 0.75 * 0.25 + 0.25 * 9
    expected = after_one - 0.1 * (m / (1 - 0.25)) / math.sqrt(v / (1 - 0.5625))
    assert step(optimizer, model, 3.0) == pytest.approx(expected, rel=1e-5)


def test_sgd_with_momentum_by_hand(tmp_path):
    model = Weight()
    optimizer = build(tmp_path, model, name="sgd", arguments={"momentum": 0.5})
    assert step(optimizer, model) == pytest.approx(1.9)
    assert step(optimizer, model) == pytest.approx(1.9 - 0.1 * 1.5)


@pytest.mark.parametrize("name", ["rmsprop", "adagrad", "adafactor", "muon", "adamw_torch"])
def test_every_optimizer_that_needs_no_package_moves_the_weights(tmp_path, name):
    model = TinyRun(tmp_path).model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build(tmp_path, model, name=name, learning_rate=1e-3)
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters() if p.grad.any())


def test_optim_args_reach_the_optimizer_with_their_types(tmp_path):
    optimizer = build(tmp_path, Weight(), arguments={"amsgrad": True})
    assert optimizer.defaults["amsgrad"] is True


def test_optim_args_may_be_lists(tmp_path):
    optimizer = build(tmp_path, Weight(), arguments={"betas": [0.5, 0.6]})
    assert tuple(optimizer.defaults["betas"]) == (0.5, 0.6)


def test_target_modules_without_a_projecting_optimizer_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="optim_target_modules"):
        build(tmp_path, Weight(), target_modules=("q_proj",))


def test_optim_args_that_nobody_takes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean `amsgrad`"):
        build(tmp_path, Weight(), arguments={"amsgrd": True})


def test_norms_and_biases_do_not_decay(tmp_path):
    model = TinyRun(tmp_path).model()
    groups = parameter_groups(model, dataclasses.replace(PLAN, weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, not_decayed = ([names[id(p)] for p in group["params"]] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all("norm" in name for name in not_decayed)
    assert not any("norm" in name for name in decayed)
    assert len(decayed) + len(not_decayed) == len(names)


def test_embeddings_learn_at_their_own_rate(tmp_path):
    model = TinyRun(tmp_path).model()
    groups = parameter_groups(model, dataclasses.replace(PLAN, embedding_learning_rate=0.01))
    of_embedding = [group for group in groups if group["lr"] == 0.01]
    assert [p is model.get_input_embeddings().weight for p in of_embedding[0]["params"]] == [True]
    assert {group["lr"] for group in groups} == {0.1, 0.01}


def test_an_embedding_rate_without_a_trained_embedding_is_refused(tmp_path):
    model = TinyRun(tmp_path, lora=True).model()
    with pytest.raises(ConfigError, match="no embedding is trained"):
        parameter_groups(model, dataclasses.replace(PLAN, embedding_learning_rate=0.01))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamw_torhc", "did you mean `adamw_torch`"),
        ("lomo", "during the backward pass"),
        ("adamw_anyprecision", "no longer maintained"),
    ],
)
def test_names_that_do_not_exist_or_cannot_work(name, message):
    with pytest.raises(ConfigError, match=message):
        check_optimizer(name)


@pytest.mark.parametrize(
    ("name", "install"),
    [
        ("adamw_bnb_8bit", r"pip install 'newtune\[bitsandbytes\]'"),
        ("paged_adamw_8bit", r"pip install 'newtune\[bitsandbytes\]'"),
        ("lion_32bit", r"pip install 'newtune\[bitsandbytes\]'"),
        ("schedule_free_adamw", "pip install 'schedulefree"),
        ("optimi_adamw", "pip install torch-optimi"),
        ("galore_adamw", "pip install galore-torch"),
        ("ao_adamw_8bit", "pip install torchao"),
    ],
)
def test_a_missing_package_is_answered_with_its_install_line(monkeypatch, name, install):
    monkeypatch.setattr(optim.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(SetupError, match=install):
        check_optimizer(name)


def test_every_name_of_transformers_is_known_needed_or_refused():
    plain = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    names = {name.value for name in optim.OptimizerNames}
    assert names == plain | (set(optim.NEEDS) & names) | (set(REFUSED_OPTIMIZERS) & names)


def test_the_configuration_knows_what_runs_and_what_is_refused():
    assert set(OPTIMIZERS) - set(REFUSED_OPTIMIZERS) == optim.known_optimizers()


@pytest.mark.parametrize("name", REFUSED_OPTIMIZERS)
def test_a_refused_name_is_refused_here_too(name):
    with pytest.raises(ConfigError, match="is not supported"):
        check_optimizer(name)


def test_muon_takes_the_matrices_and_adamw_the_rest(tmp_path):
    model = TinyRun(tmp_path).model()
    optimizer = build(tmp_path, model, name="muon")
    assert isinstance(optimizer, Joined)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = (
        {names[id(p)] for group in part.param_groups for p in group["params"]}
        for part in optimizer.parts
    )
    assert "lm_head.weight" in adamw
    assert "model.embed_tokens.weight" in adamw
    assert "model.layers.0.self_attn.q_proj.weight" in muon
    assert all("proj" in name for name in muon)
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.parts[0].param_groups[0]["lr"] == 0.5


class Two(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.a = nn.Parameter(torch.ones(3, 2, dtype=dtype))
        self.b = nn.Parameter(torch.ones(4, dtype=dtype))


def trained(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()


def test_the_state_is_keyed_by_name_and_survives_another_order():
    model = Two()
    optimizer = torch.optim.AdamW([{"params": [model.a], "lr": 0.1}, {"params": [model.b]}])
    trained(model, optimizer)
    saved = named_state(optimizer, model)
    assert set(saved["state"]) == {"a", "b"}
    assert [group["params"] for group in saved["param_groups"]] == [["a"], ["b"]]

    turned = torch.optim.AdamW([{"params": [model.b]}, {"params": [model.a], "lr": 7.0}])
    load_named_state(turned, model, saved)
    assert torch.equal(turned.state[model.a]["exp_avg"], optimizer.state[model.a]["exp_avg"])
    assert [group["lr"] for group in turned.param_groups] == [1e-3, 0.1]


def test_a_float32_state_of_bfloat16_weights_keeps_its_bits(tmp_path):
    model = Two(torch.bfloat16)
    optimizer = build(tmp_path, model, name="adafactor")
    trained(model, optimizer)
    saved = named_state(optimizer, model)
    assert saved["state"]["b"]["exp_avg_sq"].dtype == torch.float32
    other = build(tmp_path, model, name="adafactor")
    load_named_state(other, model, saved)
    assert torch.equal(other.state[model.b]["exp_avg_sq"], optimizer.state[model.b]["exp_avg_sq"])


def lora_plus(**lora):
    """A LoRA with everything that LoRA+ tells apart: linear layers, an embedding, vectors."""
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], **lora)
    return get_peft_model(tiny_llama(), config)


RATES = LoraPlusPlan(ratio=16, embedding_learning_rate=0.003)


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_lora_plus_gives_every_parameter_pefts_rate(tmp_path, lora):
    model = lora_plus(modules_to_save=["norm"], **lora)
    names = {id(p): name for name, p in model.named_parameters()}
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.1, loraplus_lr_ratio=16, loraplus_lr_embedding=0.003
    )
    ours = parameter_groups(model, dataclasses.replace(PLAN, lora_plus=RATES))

    def rates(groups):
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    assert rates(ours) == pytest.approx(rates(theirs.param_groups))
    assert set(rates(ours).values()) == {0.1, 1.6, 0.003}


def test_lora_plus_moves_b_further_than_a(tmp_path):
    model = lora_plus()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = build(tmp_path, model, learning_rate=1e-3, lora_plus=RATES)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # the first step of Adam with equal gradients is the learning rate itself
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wanted = 0.003 if "embedding" in name else 0.016 if "lora_B" in name else 1e-3
            moved = (before[name] - parameter).detach()
            torch.testing.assert_close(moved, torch.full_like(moved, wanted), rtol=1e-3, atol=0)


def test_lora_plus_and_muon_keep_the_rates_apart(tmp_path):
    optimizer = build(tmp_path, lora_plus(), name="muon", learning_rate=1e-3, lora_plus=RATES)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 0.016, 0.003}
