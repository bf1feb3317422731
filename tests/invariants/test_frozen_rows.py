"""Rows that a range of `unfrozen_parameters` leaves out stay bit for bit; the others train."""

import pytest
import torch
from torch import nn

from newtune.training.frozen_rows import freeze_rows
from runs import TinyRun, assert_same, weights
from tiny import tiny_llama

RANGES = ("^model.embed_tokens.weight$[:200]", "^lm_head.weight$[100:300]", "model.norm")
TRAINED = {"model.embed_tokens.weight": slice(0, 200), "lm_head.weight": slice(100, 300)}
DECAY = {"optimizer": {"weight_decay": 0.1, "max_grad_norm": 0.01}}


def trained(root, **changes):
    run = TinyRun(root, unfrozen=RANGES, **{**DECAY, **changes})
    trainer = run.trainer()
    trainer.train()
    return run, weights(trainer.model)


def others(values, name):
    kept = torch.ones(384, dtype=torch.bool)
    kept[TRAINED[name]] = False
    return values[kept]


@pytest.mark.parametrize("optimizer", [
    {"name": "adamw_torch"}, {"name": "sgd", "arguments": {"momentum": 0.9}}, {"name": "muon"},
    {"name": "adafactor"}, {"name": "rmsprop"},
])  # fmt: skip
def test_the_other_rows_stay_bit_for_bit(tmp_path, optimizer):
    changes = {"optimizer": {**DECAY["optimizer"], **optimizer}}
    before = tiny_llama(seed=1).state_dict()
    _, after = trained(tmp_path, **changes)
    assert after.keys() == {*TRAINED, "model.norm.weight"}
    for name, rows in TRAINED.items():
        assert torch.equal(others(after[name], name), others(before[name], name))
        assert (after[name][rows] != before[name][rows]).any(dim=1).all()


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path):
    _, expected = trained(tmp_path / "whole", steps=4)
    run, _ = trained(tmp_path / "saved", steps=4, save={"at_steps": frozenset({2})})
    resumed = run.trainer()
    resumed.train(run.root / "checkpoint-2")
    assert_same(weights(resumed.model), expected)


def test_the_gradients_of_the_other_rows_are_in_no_norm(tmp_path):
    run = TinyRun(tmp_path, unfrozen=RANGES, steps=1)
    trainer = run.trainer()
    trainer.train()
    whole = TinyRun(tmp_path / "whole", steps=1, unfrozen=("model.embed", "lm_head", "model.norm"))
    found = {}

    def keep(optimizer, args, kwargs):
        parameters = dict(other.network.named_parameters())
        found.update({name: parameters[name].grad.clone() for name in TRAINED})
        found["model.norm.weight"] = parameters["model.norm.weight"].grad.clone()

    whole.optimizer = {"max_grad_norm": 1e9}
    other = whole.trainer()
    other.create_optimizer().register_step_pre_hook(keep)
    other.train()
    parts = [found[name][rows].flatten() for name, rows in TRAINED.items()]
    expected = torch.cat([*parts, found["model.norm.weight"]]).norm()
    assert run.metrics()[0]["grad_norm"] == pytest.approx(float(expected), rel=1e-5)
    assert whole.metrics()[0]["grad_norm"] > 1.05 * float(expected)


def test_adamw_moves_the_rows_as_a_parameter_of_their_own():
    torch.manual_seed(0)
    layer, alone = nn.Linear(3, 8, bias=False), nn.Parameter(torch.empty(4, 3))
    with torch.no_grad():
        alone.copy_(layer.weight[2:6])
    ours = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    theirs = torch.optim.AdamW([alone], lr=0.1, weight_decay=0.1)
    freeze_rows(layer, ours, {"weight": ((2, 4), (3, 6))})
    before = layer.weight.detach().clone()
    for seed in range(5):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        ((layer(inputs)) ** 2).sum().backward()
        ((inputs @ alone.T) ** 2).sum().backward()
        ours.step()
        theirs.step()
        ours.zero_grad()
        theirs.zero_grad()
    torch.testing.assert_close(layer.weight[2:6], alone, rtol=1e-6, atol=1e-7)
    assert torch.equal(layer.weight[:2], before[:2])
    assert torch.equal(layer.weight[6:], before[6:])
