"""Which attention runs, and what is refused with which remedy."""

from dataclasses import replace

import pytest

from newtune.errors import SetupError
from newtune.plan.attention import choose_attention
from runs import model_facts

ATTENTIONS = model_facts().attentions


def chosen(requested=None, *, device="cpu", model_type="llama", packed=True):
    attentions = (
        ATTENTIONS - {"sdpa"} if model_type in ("gemma2", "gpt_oss", "mamba") else ATTENTIONS
    )
    facts = replace(model_facts(), model_type=model_type, attentions=attentions)
    return choose_attention(requested, facts, packed=packed, device=device)


def test_cpu_takes_our_own_where_it_is_proven():
    assert chosen()[0] == "newtune_packed"
    assert chosen(model_type="mamba")[0] == "eager"
    assert chosen(model_type="bloomz_of_tomorrow")[0] == "sdpa"
    assert "not proven" in chosen(model_type="bloomz_of_tomorrow")[1]


def test_cuda_takes_flash_attention_if_it_is_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen(device="cuda:0") == ("sdpa", "flash-attn is not installed, or not for this model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert chosen(device="cuda:0") == ("flash_attention_2", "flash-attn is installed")


def test_a_soft_cap_in_attention_keeps_sdpa_away():
    assert chosen(device="cuda:0", model_type="gemma2")[0] == "eager"
    assert chosen(device="cuda:0", model_type="gpt_oss")[0] == "eager"


@pytest.mark.parametrize("name", ["eager", "sdpa", "newtune_packed"])
def test_what_is_asked_for_is_done(name):
    assert chosen(name)[0] == name


@pytest.mark.parametrize(("name", "device", "said"), [
    ("flash_attention_2", "cpu", "runs on CUDA only"),
    ("flash_attention_2", "cuda:0", r"pip install flash-attn"),
    ("flex_attention", "cpu", "no backward pass on CPU"),
    ("flash_atention_2", "cuda:0", "did you mean `flash_attention_2`"),
    ("xformers", "cuda:0", "known: "),
])  # fmt: skip
def test_what_cannot_run_is_refused_with_a_remedy(monkeypatch, name, device, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(SetupError, match=said):
        chosen(name, device=device)


def test_what_the_model_does_not_hand_its_attention_to_is_refused():
    with pytest.raises(SetupError, match="`sdpa` does not compute what `gemma2` does"):
        chosen("sdpa", model_type="gemma2")
    without = replace(model_facts(), model_type="gptj", attentions=frozenset({"flash_attention"}))
    with pytest.raises(SetupError, match="or set `eager`"):
        choose_attention("newtune_packed", without, packed=False, device="cpu")
