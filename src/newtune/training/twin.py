"""An empty copy of a model, made before an engine takes the model apart, and filled to be written.

twin = Twin(model)
with twin.filled(gathered_values) as whole:   # an ordinary model on the CPU again
    ...

So every check of a checkpoint or a result is the same as without an engine.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from newtune.model.quantization import layers_of_four_bits
from newtune.training.checkpoint import Model


class Twin:
    """A copy of a model whose parameters take no memory but for a while."""

    def __init__(self, model: Model) -> None:
        self.model = _empty_copy(model)
        self._places = places_of(self.model)

    @contextmanager
    def filled(self, values: Iterable[tuple[str, Tensor]]) -> Iterator[Model]:
        """Yield the copy with these values for its parameters; the others are empty."""
        empty = dict(self.model.named_parameters())
        places = {name: self._places[id(parameter)] for name, parameter in empty.items()}
        for name, value in values:
            trained = empty[name].requires_grad
            put(places[name], nn.Parameter(value, requires_grad=trained))
        try:
            yield self.model
        finally:
            for name, parameter in empty.items():
                put(places[name], parameter)


def room_for(value: Tensor) -> Tensor:
    """Return an empty tensor on the CPU, of the whole shape."""
    return torch.empty(value.shape, dtype=value.dtype)


Places = list[tuple[nn.Module, str]]
"""Where one parameter stands: tied ones have several."""


def places_of(model: nn.Module) -> dict[int, Places]:
    """Return where each parameter stands, by its `id`."""
    places: dict[int, Places] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    return places


def put(places: Places, parameter: nn.Parameter) -> None:
    """Let a parameter stand there."""
    for module, name in places:
        setattr(module, name, parameter)


def _empty_copy(model: Model) -> Model:
    """Return a copy of the model whose parameters take no memory; tied ones stay tied."""
    known: dict[int, Any] = {
        id(parameter): nn.Parameter(
            torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"),
            requires_grad=parameter.requires_grad,
        )
        for parameter in model.parameters()
    }
    known |= {id(layer.quant_state): layer.quant_state for layer in layers_of_four_bits(model)}
    return copy.deepcopy(model, known)
