"""Which modules are gathered as one piece."""

import pytest

from newtune.errors import ConfigError
from newtune.plan.parts import FsdpPlan
from newtune.training.fsdp import pieces
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
