"""Scaled rotary positions: the angles by the papers' arithmetic, and what cannot be."""

import math

import pytest
import torch

from newtune.errors import ConfigError
from newtune.model.facts import read_config, read_model_facts
from newtune.model.load import load_model
from newtune.plan.parts import ModelPlan, PrecisionPlan
from tiny import save_tiny_checkpoint, tiny_tokenizer

WIDTH, LENGTH, THETA = 32, 64, 10000.0
"""Of a head, of the positions that were trained, and the base of the angles."""
ANGLES = range(WIDTH // 2)
KEY = "overrides_of_model_config"
MIXED = ["sliding_attention", "full_attention"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("llama"))


def checkpoint(folder, family="llama", **config):
    sizes = {"hidden_size": 128, "head_dim": WIDTH, "max_position_embeddings": LENGTH}
    return save_tiny_checkpoint(folder, family, **{**sizes, **config})


def load(folder, scaling=None, **overrides):
    overrides |= {"rope_scaling": scaling} if scaling else {}
    plan = ModelPlan(
        source=str(folder), config_source=str(folder), revision=None,
        model_class="AutoModelForCausalLM", trust_remote_code=False, ignore_patterns=(),
        config_overrides=overrides, load_kwargs={}, attention="newtune_packed",
        precision=PrecisionPlan("float32", "float32", None, None), device="cpu",
        gradient_checkpointing=False, gradient_checkpointing_kwargs={}, embedding_multiple=None,
    )  # fmt: skip
    return load_model(plan, None, tokenizer=tiny_tokenizer())


def refused(folder, **overrides):
    with pytest.raises(ConfigError) as caught:
        read_model_facts(str(folder), config_overrides=overrides)
    return str(caught.value)


def plain(theta=THETA):
    return [theta ** (-2 * i / WIDTH) for i in ANGLES]


def linear(factor):
    return [angle / factor for angle in plain()]


def dynamic(factor, length):
    """NTK-aware, by the length of the sequence (YaRN's paper, section 3.3 and appendix B.1)."""
    grown = (factor * length / LENGTH) - (factor - 1)
    return plain(THETA * grown ** (WIDTH / (WIDTH - 2)))


def yarn(factor, fast=32, slow=1):
    """NTK by parts, https://arxiv.org/abs/2309.00071: ramp between two numbers of rotations."""

    def angle_that_turns(times):
        return WIDTH * math.log(LENGTH / (times * 2 * math.pi)) / (2 * math.log(THETA))

    low = max(math.floor(angle_that_turns(fast)), 0)
    high = min(math.ceil(angle_that_turns(slow)), WIDTH - 1)
    ramps = [min(max((i - low) / (high - low), 0), 1) for i in ANGLES]
    pairs = zip(plain(), ramps, strict=True)
    return [angle / factor * ramp + angle * (1 - ramp) for angle, ramp in pairs]


def llama3(factor, low, high, original):
    """By wavelength, as in Meta's `apply_scaling` of Llama 3.1."""
    angles = []
    for angle in plain():
        wave = 2 * math.pi / angle
        smooth = (original / wave - low) / (high - low)
        mixed = (1 - smooth) * angle / factor + smooth * angle
        scaled = angle / factor if wave > original / low else mixed
        angles.append(angle if wave < original / high else scaled)
    return angles


def longrope(factors):
    """https://arxiv.org/abs/2402.13753: a factor for each angle."""
    return [angle / factor for angle, factor in zip(plain(), factors, strict=True)]


SHORT, LONG = [1 + i / 100 for i in ANGLES], [1 + i for i in ANGLES]
LISTS = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 4.0}
TUNED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
EXPECTED = {
    # scaling → angles within the trained length, beyond it (200 tokens), factor of attention
    "linear": ({"factor": 2.0}, linear(2.0), linear(2.0), 1.0),
    "dynamic": ({"factor": 2.0}, plain(), dynamic(2.0, 200), 1.0),
    "yarn": ({"factor": 4.0}, yarn(4.0), yarn(4.0), 0.1 * math.log(4.0) + 1),
    "llama3": ({"factor": 8.0, **TUNED}, *[llama3(8.0, 1.0, 4.0, 32)] * 2, 1.0),
    "longrope": (LISTS, longrope(SHORT), longrope(LONG), math.sqrt(1 + math.log(4, LENGTH))),
}


def assert_angles(rotary, length, angles, attention=1.0, **layer):
    """Compare cosine and sine at each position with those of the angles."""
    positions = torch.arange(length)[None]
    cos, sin = rotary(torch.zeros(1), positions, **layer)
    turned = torch.outer(torch.arange(length).double(), torch.tensor(angles).double())
    turned = torch.cat([turned, turned], dim=-1)[None]
    for ours, expected in ((cos, turned.cos()), (sin, turned.sin())):
        torch.testing.assert_close(ours.double(), attention * expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_angles_of_a_loaded_model_are_those_of_the_paper(folder, kind):
    scaling, within, beyond, attention = EXPECTED[kind]
    model = load(folder, {"type": kind, **scaling})
    assert model.config.rope_parameters["rope_theta"] == THETA
    for length, angles in ((10, within), (200, beyond), (10, within)):
        assert_angles(model.model.rotary_emb, length, angles, attention)


def test_the_base_of_the_angles_can_be_given_alone(folder):
    model = load(folder, rope_theta=500.0)
    assert_angles(model.model.rotary_emb, 10, plain(500.0))


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        ({"type": "linear", "factor": 2.0}, 2 * LENGTH),
        ({"type": "dynamic", "factor": 3.0}, 3 * LENGTH),
        ({"type": "yarn", "factor": 4.0}, 4 * LENGTH),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"type": "llama3", "factor": 8.0, **TUNED}, 8 * 32),
        (LISTS, 4 * LENGTH),
        ({**LISTS, "factor": 1.0}, LENGTH),
    ],
)
def test_the_scaling_counts_in_how_long_a_sequence_may_be(folder, scaling, positions):
    facts = read_model_facts(str(folder), config_overrides={"rope_scaling": scaling})
    assert facts.max_positions == positions


def test_another_type_keeps_nothing_of_the_checkpoints_scaling_but_theta(tmp_path):
    stored = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, **TUNED}
    base = checkpoint(tmp_path, rope_parameters=stored)
    model = load(base, {"type": "linear", "factor": 2.0})
    assert model.config.rope_parameters == {
        "rope_theta": 500.0, "rope_type": "linear", "factor": 2.0
    }  # fmt: skip
    more = read_model_facts(str(base), config_overrides={"rope_scaling": {"factor": 16.0}})
    assert (more.max_positions, more.rotary_kinds) == (16 * 32, {"llama3"})


def test_gemma_3_scales_its_full_attention_and_kinds_of_layers_can_be_named(tmp_path):
    base = checkpoint(tmp_path, "gemma3_text", layer_types=MIXED)
    model = load(base, {"type": "linear", "factor": 4.0}, rope_local_base_freq=300.0)
    wide = [angle / 4 for angle in plain(1e6)]
    assert_angles(model.model.rotary_emb, 20, wide, layer_type="full_attention")
    assert_angles(model.model.rotary_emb, 20, plain(300.0), layer_type="sliding_attention")
    both = {"full_attention": {"factor": 2.0, "type": "dynamic"}}
    both["sliding_attention"] = {"type": "linear", "factor": 2.0}
    model = load(base, both, rope_theta=THETA)
    for length, angles in ((10, plain()), (200, dynamic(2.0, 200)), (10, plain())):
        assert_angles(model.model.rotary_emb, length, angles, layer_type="full_attention")
    assert_angles(model.model.rotary_emb, 20, linear(2.0), layer_type="sliding_attention")
    said = refused(base, rope_scaling={"full_atention": {"type": "linear", "factor": 2.0}})
    assert "full_atention: no such kind of layers in `gemma3_text`; it has: full_att" in said


def test_phi_3_takes_longrope_from_the_length_that_is_given(tmp_path):
    base = checkpoint(tmp_path, "phi3")
    given = {**LISTS, "original_max_position_embeddings": 48}
    del given["factor"]
    model = load(base, given, max_position_embeddings=192)
    attention = math.sqrt(1 + math.log(192 / 48, 48))
    assert_angles(model.model.rotary_emb, 48, longrope(SHORT), attention)
    assert_angles(model.model.rotary_emb, 49, longrope(LONG), attention)
    said = refused(base, rope_scaling={"type": "linear", "factor": 2.0})
    assert "rope_scaling.type: got `linear`; the code of `phi3` takes `longrope` alone" in said


def test_the_text_part_of_a_multimodal_configuration_is_meant(tmp_path):
    from transformers import Gemma3Config

    Gemma3Config(text_config={"num_hidden_layers": 2, "layer_types": MIXED}).save_pretrained(
        tmp_path
    )
    given = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    for overrides in (given, {"text_config": given}):
        config = read_config(
            str(tmp_path), revision=None, trust_remote_code=False, overrides=overrides
        )
        rope = config.get_text_config().rope_parameters["full_attention"]
        assert rope == {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (
            {"factor": 2.0},
            "rope_scaling.type: is missing, and the checkpoint has no scaling; known",
        ),
        (
            {**LISTS, "short_factor": [1.0]},
            "short_factor: got 1 numbers; expected 16, one for each",
        ),
        ({"full_attention": {"type": "linear", "factor": 2.0}}, "expected one for all layers"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_refused(folder, scaling, said):
    assert said in refused(folder, rope_scaling=scaling)


@pytest.mark.parametrize(("family", "config"), [("gpt2", {}), ("gptj", {}), ("mpt", {})])
def test_a_model_without_rotary_positions_cannot_scale_them(tmp_path, family, config):
    base = save_tiny_checkpoint(tmp_path, family, **config)
    said = refused(base, rope_scaling={"type": "linear", "factor": 2.0})
    assert f"`{family}` has no rotary positions that can be scaled" in said


def test_a_value_that_the_model_cannot_have_is_refused(folder):
    said = refused(folder, hidden_size="wide")
    assert said.startswith(f"{KEY}: LlamaConfig refuses it: ")
    assert "hidden_size" in said


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_an_example_has_the_angles_of_its_own_length_whatever_is_beside_it(folder, kind):
    model = load(folder, {"type": kind, **EXPECTED[kind][0]}).eval()
    parts = [torch.randint(6, 384, (1, length)) for length in (100, 20, 150)]
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    with torch.no_grad():
        alone = [logits(model, part) for part in parts]
        packed = logits(model, torch.cat(parts, 1), position_ids=positions)
        rows = torch.stack([torch.cat([parts[0], parts[1]], 1)[0], parts[2][0][:120]])
        starts = torch.stack([positions[0][:120], torch.arange(120)])
        batch = logits(model, rows, position_ids=starts)
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch[:1], torch.cat(alone[:2], 1), rtol=1e-4, atol=1e-5)


def logits(model, tokens, **arguments):
    return model(tokens, use_cache=False, **arguments).logits
