"""Where the layers of a 7B Llama go, by arithmetic on a model without weights."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.model.facts import build_on_meta
from newtune.plan.facts import ModelFacts
from newtune.plan.parts import PrecisionPlan, QuantizationPlan
from newtune.plan.placement import GIB, Wish, memory_bytes, plan_placement
from newtune.plan.weights import bytes_in, memory_of

LAYER = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
EMBEDDING = 32000 * 4096
WHOLE = 32 * LAYER + 2 * EMBEDDING + 4096
HALF = PrecisionPlan("bfloat16", "float32", "bfloat16", None)
NF4 = QuantizationPlan(4, {"bnb_4bit_use_double_quant": True})
ROOM = {"cpu": 64 * GIB}


def llama() -> PreTrainedModel:
    return build_on_meta(AutoModelForCausalLM, LlamaConfig(), trust_remote_code=False)


@cache
def facts() -> ModelFacts:
    model = llama()
    linear = {
        name: (layer.in_features, layer.out_features)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    return ModelFacts(
        model_type="llama",
        architecture="LlamaForCausalLM",
        parameters=WHOLE,
        layers=32,
        hidden_size=4096,
        vocab_size=32000,
        max_positions=2048,
        checkpoint_dtype=None,
        linear_modules=linear,
        head_name="lm_head",
        parameter_shapes={},
        tied_embeddings=False,
    )


def planned(
    wish: Wish, room: Mapping[Any, int], *, full: bool = False, trains: bool = True, **memory: Any
) -> Any:
    gpus = sum(isinstance(device, int) for device in room)
    world = World(0, 1, "cuda:0" if gpus else "cpu", gpus, bf16_is_fast=True)
    bytes_of = memory_of(
        facts(),
        HALF,
        memory.get("quantization"),
        unfrozen=() if full else None,
        optimizer=memory.get("optimizer", "adamw_torch"),
    )
    return plan_placement(wish, world, llama, bytes_of, trains=trains, available=lambda: room)


def gpus_of_layers(devices: Mapping[str, Any]) -> list[Any]:
    """The device of each decoder layer, which has one because none is cut."""
    assert not [name for name in devices if name.count(".") > 2]
    return [devices[f"model.layers.{index}"] for index in range(32)]


def test_a_model_that_fits_one_gpu_is_spread_evenly_over_two() -> None:
    plan, why = planned(Wish("auto"), {0: 24 * GIB, 1: 24 * GIB, **ROOM})
    layers = gpus_of_layers(plan.devices)
    assert layers == sorted(layers)
    assert sum(plan.memory_bytes.values()) == 2 * WHOLE
    assert abs(plan.memory_bytes[0] - plan.memory_bytes[1]) <= 2 * LAYER + 2 * EMBEDDING
    assert "GPU 0 holds" in why
    assert "GPU 1 holds" in why


def test_full_fine_tuning_counts_gradients_and_the_optimizers_memory() -> None:
    """16 bytes for each of 6.7 billion parameters: 100 GiB, too much for 4 × 16 GiB."""
    four = {**dict.fromkeys(range(4), 16 * GIB), **ROOM}
    with pytest.raises(ConfigError, match="gradients cannot flow back"):
        planned(Wish("auto"), four, full=True)
    eight = {**dict.fromkeys(range(4), 40 * GIB), **ROOM}
    plan, _ = planned(Wish("balanced"), eight, full=True)
    assert sum(plan.memory_bytes.values()) == 16 * WHOLE
    assert set(gpus_of_layers(plan.devices)) == {0, 1, 2, 3}
    without_state, _ = planned(Wish("balanced"), eight, full=True, optimizer="sgd")
    assert sum(without_state.memory_bytes.values()) == 8 * WHOLE


@pytest.mark.parametrize("strategy", ["auto", "balanced"])
def test_four_gpus_get_about_the_same(strategy: str) -> None:
    plan, _ = planned(Wish(strategy), {**dict.fromkeys(range(4), 16 * GIB), **ROOM})
    shares = [plan.memory_bytes[gpu] / (2 * WHOLE) for gpu in range(4)]
    assert all(0.18 < share < 0.32 for share in shares)


def test_in_sequence_the_first_gpus_are_filled() -> None:
    room = {**dict.fromkeys(range(4), 6 * GIB), **ROOM}
    plan, _ = planned(Wish("sequential"), room)
    assert plan.memory_bytes[0] > 4 * GIB
    assert set(plan.devices.values()) == {0, 1, 2}


def test_the_first_gpu_can_be_kept_free() -> None:
    plan, _ = planned(Wish("balanced_low_0"), {**dict.fromkeys(range(3), 24 * GIB), **ROOM})
    assert plan.memory_bytes.get(0, 0) < plan.memory_bytes[1] / 4
    assert plan.memory_bytes[1] + plan.memory_bytes[2] > 1.9 * WHOLE


def test_four_bits_take_a_quarter_of_the_room() -> None:
    assert bytes_in(4, 4096, double=False) == 2048 + 64 * 4
    assert bytes_in(4, 4096 * 16, double=True) == 2048 * 16 + 64 * 16 + 4 * 4
    room = {0: 3 * GIB, 1: 3 * GIB, **ROOM}
    with pytest.raises(ConfigError, match="other memory"):
        planned(Wish("auto"), room)
    plan, _ = planned(Wish("auto"), room, quantization=NF4)
    stored = sum(plan.memory_bytes.values())
    linear = 32 * (LAYER - 2 * 4096)
    assert stored == bytes_in(4, linear, double=True) + 2 * (WHOLE - linear)
    assert set(gpus_of_layers(plan.devices)) == {0, 1}


def test_torchaos_codes_take_a_byte_each_however_few_bits_they_are_of() -> None:
    options = {"kind": "IntxWeightOnlyConfig", "group_size": 128, "left_out": ["down_proj"]}
    four = QuantizationPlan(4, options, stored=True, method="torchao")
    room = {0: 6 * GIB, 1: 6 * GIB, **ROOM}
    plan, _ = planned(Wish("auto"), room, quantization=four)
    left = 32 * 4096 * 11008  # in 16 bit
    linear = 32 * (LAYER - 2 * 4096) - left
    assert sum(plan.memory_bytes.values()) == linear + 5 * linear // 128 + 2 * (WHOLE - linear)


def test_what_fits_no_gpu_goes_to_the_cpu_and_then_to_the_disk() -> None:
    limits = Wish(max_memory={0: "6GiB", "cpu": 5})
    room = {0: 24 * GIB, **ROOM}
    plan, why = planned(limits, room, trains=False)
    layers = gpus_of_layers(plan.devices)
    assert layers == sorted(layers, key=[0, "cpu", "disk"].index)
    assert set(layers) == {0, "cpu", "disk"}
    assert plan.memory_bytes[0] <= 6 * GIB
    assert plan.memory_bytes["cpu"] <= 5 * GIB
    assert why.startswith("max_memory: GPU 0 holds")
    with pytest.raises(ConfigError, match=r"on the cpu.*gradients cannot flow back"):
        planned(limits, room)


def test_a_limit_holds_for_each_gpu() -> None:
    plan, _ = planned(Wish(gpu_memory_limit="5GiB"), {**dict.fromkeys(range(4), 24 * GIB), **ROOM})
    assert max(plan.memory_bytes.values()) <= 5 * GIB
    assert memory_bytes("5GiB") == memory_bytes(5) == memory_bytes("5") == 5 * GIB
    assert memory_bytes("512 MB") == 512 * 10**6


def test_one_device_for_all_is_no_placement() -> None:
    assert planned(Wish("auto"), {0: 80 * GIB, **ROOM})[0] is None
    assert planned(Wish(), {0: 80 * GIB, 1: 80 * GIB, **ROOM})[0] is None
    placement, why = planned(Wish("auto", gpu_memory_limit=20), ROOM)
    assert (placement, "no GPU is visible" in why) == (None, True)
    assert planned(Wish({"": "cpu"}), ROOM)[0] is None


def test_without_gpus_a_limit_of_memory_leaves_the_rest_on_the_disk() -> None:
    wish = Wish("auto", max_memory={"cpu": "6GiB"})
    plan, _ = planned(wish, ROOM, trains=False)
    assert set(plan.devices.values()) == {"cpu", "disk"}
    with pytest.raises(ConfigError, match="on the disk: they are fetched"):
        planned(wish, ROOM)


TWO = {0: 24 * GIB, 1: 24 * GIB, **ROOM}
MAPS = [
    ({"model.layer.0": 0}, "no module of this model.*model.layers.0"),
    ({"model": 0}, "no device to `lm_head.weight`"),
    ({"": 2}, "names GPU 2, but 2 GPU"),
    ({"": "gpu"}, "`gpu` is no device"),
    ({"": 0, "model.layers.3.mlp": 1}, "in one layer, `model.layers.3`, which is not cut"),
    ({"": "cpu"}, "uses no GPU"),
    ({"": 1}, "uses GPU 1 alone"),
    ({"": "disk"}, "uses no GPU"),
]


@pytest.mark.parametrize(("given", "said"), MAPS)
def test_a_map_that_does_not_fit_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(Wish(given), TWO)


def test_a_given_map_is_taken_as_it_is() -> None:
    given = {"": "cuda:0", "model.layers.31": 1, "model.norm": 1, "lm_head": 1}
    plan, _ = planned(Wish(given), TWO)
    assert plan.devices == {"": 0, "model.layers.31": 1, "model.norm": 1, "lm_head": 1}
    assert plan.memory_bytes[1] == 2 * (LAYER + 4096 + EMBEDDING)


def test_several_processes_exclude_it() -> None:
    world = World(0, 2, "cpu", 0, bf16_is_fast=True)
    with pytest.raises(ConfigError, match="excludes several processes"):
        plan_placement(Wish("auto"), world, llama, lambda *_: 0, trains=True)
