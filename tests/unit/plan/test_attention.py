"""Which attention runs, and what is refused with which remedy."""

from dataclasses import replace

import pytest

from newtune.errors import SetupError
from newtune.plan.attention import Setting, choose_attention, flattens
from runs import model_facts

ATTENTIONS = model_facts().attentions


def chosen(requested=None, *, device="cpu", model_type="llama", packed=True, installed=(), **more):
    capped = model_type in ("gemma2", "gpt_oss", "mamba")
    attentions = ATTENTIONS - {"sdpa"} if capped else ATTENTIONS
    facts = replace(model_facts(), model_type=model_type, attentions=attentions)
    setting = Setting(device, packed, installed=lambda name: name in installed, **more)
    return choose_attention(requested, facts, setting)


def test_cpu_takes_our_own_where_it_is_proven():
    assert chosen()[0] == "newtune_packed"
    assert chosen(model_type="mamba")[0] == "eager"
    assert chosen(model_type="bloomz_of_tomorrow")[0] == "sdpa"
    assert "not proven" in chosen(model_type="bloomz_of_tomorrow")[1]


def test_cuda_takes_flash_attention_if_it_is_there_and_fits():
    assert chosen(device="cuda:0") == ("sdpa", "flash-attn is not installed")
    there = {"device": "cuda:0", "installed": ("flash-attn",)}
    assert chosen(**there) == ("flash_attention_2", "flash-attn is installed")
    name, why = chosen(**there, capability=(7, 5))
    assert (name, "needs a GPU of compute capability 8.0" in why) == ("sdpa", True)
    name, why = chosen(**there, half_precision=False)
    assert (name, "computes in 16 bit only" in why) == ("sdpa", True)


def test_the_package_of_flash_attention_4_is_not_taken_for_that_of_2():
    assert chosen(device="cuda:0", installed=("flash-attn-4",))[0] == "sdpa"


def test_a_soft_cap_in_attention_keeps_sdpa_away():
    assert chosen(device="cuda:0", model_type="gemma2")[0] == "eager"
    assert chosen(device="cuda:0", model_type="gpt_oss")[0] == "eager"


@pytest.mark.parametrize("name", ["eager", "sdpa", "newtune_packed"])
def test_what_is_asked_for_is_done(name):
    assert chosen(name)[0] == name


@pytest.mark.parametrize(
    ("name", "package", "capability"),
    [
        ("flash_attention_2", "flash-attn", (8, 0)),
        ("flash_attention_3", "flash-attn-3", (9, 0)),
        ("flash_attention_4", "flash-attn-4", (10, 0)),
        ("xformers", "xformers", (7, 0)),
        ("flex_attention", "torch", (8, 0)),
    ],
)
def test_a_gpu_with_the_package_runs_it(name, package, capability):
    assert chosen(name, device="cuda:0", installed=(package,), capability=capability)[0] == name


@pytest.mark.parametrize(("name", "device", "said"), [
    ("flash_attention_2", "cpu", "runs on CUDA only.* takes `newtune_packed`"),
    ("flash_attention_3", "cpu", "runs on CUDA only"),
    ("flash_attention_4", "cpu", "runs on CUDA only"),
    ("xformers", "cpu", "runs on CUDA only"),
    ("flash_attention_2", "cuda:0", r"package `flash-attn`.*pip install flash-attn.*takes `sdpa`"),
    ("flash_attention_3", "cuda:0", r"package `flash-attn-3`"),
    ("flash_attention_4", "cuda:0", r"package `flash-attn-4`"),
    ("xformers", "cuda:0", r"package `xformers`.*pip install 'newtune\[xformers\]'"),
    ("flex_attention", "cpu", "no backward pass on CPU"),
    ("flash_atention_2", "cuda:0", "did you mean `flash_attention_2`"),
])  # fmt: skip
def test_what_cannot_run_is_refused_with_a_remedy(name, device, said):
    with pytest.raises(SetupError, match=said):
        chosen(name, device=device)


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_what_does_not_compute_a_familys_attention_is_refused(name):
    with pytest.raises(SetupError, match=r"what `gemma2` does.*takes `eager`"):
        chosen(name, device="cuda:0", model_type="gemma2", installed=("xformers",))


def test_old_and_unfit_devices_are_refused_before_weights_load():
    there = {"device": "cuda:0", "installed": ("flash-attn", "flash-attn-3")}
    with pytest.raises(SetupError, match=r"capability 9\.0 or newer; this one has 8\.9"):
        chosen("flash_attention_3", **there, capability=(8, 9))
    with pytest.raises(SetupError, match="16 bit only"):
        chosen("flash_attention_2", **there, half_precision=False)


@pytest.mark.parametrize("name", ["newtune_packed", "flash_attention_4", "xformers"])
def test_what_takes_boundaries_gets_one_row(name):
    assert flattens(name, packed=True, batch_flattening=False)[0]
    assert not flattens("flex_attention", packed=True, batch_flattening=False)[0]


def test_what_the_model_does_not_hand_its_attention_to_is_refused():
    without = replace(model_facts(), model_type="gptj", attentions=frozenset({"flash_attention"}))
    with pytest.raises(SetupError, match=r"has no place for it.*takes `eager`"):
        choose_attention("newtune_packed", without, Setting("cpu"))
