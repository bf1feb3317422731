"""Which modules are gathered as one piece, and what of them a process holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

from newtune.distributed.group import Group
from newtune.errors import ConfigError
from newtune.plan.sharing import FsdpPlan, MeshPlan, ParallelPlan
from newtune.training.fsdp import FullySharded, pieces
from tiny import tiny_llama


def test_decoder_layers_by_default() -> None:
    model = tiny_llama()
    assert pieces(model, FsdpPlan()) == list(model.model.layers)[::-1]


def test_classes_by_name() -> None:
    model = tiny_llama()
    found = pieces(model, FsdpPlan(layer_classes=("LlamaMLP",)))
    assert found == [layer.mlp for layer in model.model.layers][::-1]


def test_a_class_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no module of class `GPT2Block`.*LlamaDecoderLayer"):
        pieces(tiny_llama(), FsdpPlan(layer_classes=("GPT2Block",)))


def test_pieces_of_some_size_do_not_overlap() -> None:
    model = tiny_llama()
    attention = sum(p.numel() for p in model.model.layers[0].self_attn.parameters())
    found = pieces(model, FsdpPlan(wrap="size", least_parameters=attention))
    names = {name for name, module in model.named_modules() if any(module is f for f in found)}
    assert "model.layers.0.self_attn" in names
    assert "model.layers.0" not in names or "model.layers.0.mlp" not in names
    assert all(sum(p.numel() for p in piece.parameters()) >= attention for piece in found)


def test_nothing_but_the_whole() -> None:
    assert pieces(tiny_llama(), FsdpPlan(wrap="nothing")) == []


@pytest.fixture
def second_of_four() -> Iterator[Group]:
    """Be process 1 of 4, whose other processes say nothing."""
    distributed.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield Group(1, 4)
    distributed.destroy_process_group()


@pytest.mark.parametrize("mesh", [MeshPlan(1, 4), MeshPlan(2, 2), MeshPlan(4, 1)])
def test_a_process_holds_its_part_of_every_parameter(mesh: MeshPlan, second_of_four: Group) -> None:
    model = tiny_llama()
    whole = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = ParallelPlan("fsdp2", mesh, FsdpPlan())
    sharding = FullySharded.start(model, plan, second_of_four)
    for name, parameter in model.named_parameters():
        part: Any = parameter
        assert tuple(part.shape) == whole[name]
        assert part.to_local().numel() * mesh.shards == parameter.numel()
    assert {p.device.type for p in sharding.twin.model.parameters()} == {"meta"}


@pytest.fixture
def four_bit_model(tmp_path: Path) -> PreTrainedModel:
    """Return a tiny model whose linear layers are in 4 bit."""
    tiny_llama().save_pretrained(tmp_path)
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=four_bit, device_map={"": "cpu"}
    )
    return model.requires_grad_(requires_grad=False)


def test_packed_weights_are_held_in_parts(
    four_bit_model: PreTrainedModel, second_of_four: Group
) -> None:
    model = four_bit_model
    plan = ParallelPlan("fsdp2", MeshPlan(1, 4), FsdpPlan())
    sharding = FullySharded.start(model, plan, second_of_four)
    packed: list[Any] = [m.weight for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(packed) == 14
    for weight in packed:
        assert weight.dtype == torch.uint8
        assert weight.to_local().numel() * 4 == weight.numel()
    states = {id(m.quant_state) for m in model.modules() if isinstance(m, Linear4bit)}
    twins = {id(m.quant_state) for m in sharding.twin.model.modules() if isinstance(m, Linear4bit)}
    assert states == twins  # shared, not copied
