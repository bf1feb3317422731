"""What a loaded model says of itself: whose loss it gives, and who sees whom in a packed row."""

import pytest
import torch

from newtune.errors import ModelError
from newtune.model.attention import register_attention
from newtune.model.head import install_head
from newtune.model.self_check import measure_leak, require_isolation, require_own_loss
from tiny import tiny_model


def loaded(family, **config):
    register_attention()
    model = tiny_model(family, **config).train()
    install_head(model)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa", "newtune_packed"])
def test_examples_that_are_kept_apart(attention):
    model = loaded("llama", attn_implementation=attention)
    assert measure_leak(model) < 1e-5
    assert measure_leak(model.bfloat16()) < 0.05
    require_isolation(model)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "falcon", "opt", "bloom", "lfm2", "gpt_oss"])
def test_examples_that_see_each_other_are_told_with_numbers(family):
    model = loaded(family)
    assert measure_leak(model) > 0.1
    with pytest.raises(ModelError, match=rf"`{family}` see each other .* change by \d+% of"):
        require_isolation(model)


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "mpt", "recurrent_gemma", "falcon_h1"])
def test_the_loss_is_the_models_own(family):
    require_own_loss(loaded(family))
    require_own_loss(loaded(family).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        require_own_loss(loaded(family), autocast=torch.bfloat16)


def test_logits_that_are_changed_in_an_unknown_way_are_told_with_numbers(monkeypatch):
    monkeypatch.setattr("newtune.model.logits.SOFTCAPS", ())
    with pytest.raises(ModelError, match=r"`gemma2` changes its logits .* own logits give"):
        require_own_loss(loaded("gemma2"))


def test_nothing_of_the_model_and_no_random_state_is_touched():
    model = loaded("qwen3_moe", attention_dropout=0.5)
    model.model.layers[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    config = model.config.to_dict()
    state = torch.random.get_rng_state()
    require_own_loss(model)
    require_isolation(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config.to_dict() == config
