"""A checkpoint of packed layers, read as if it were stored plainly, one layer at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from newtune.model.packed_weights import unpack_awq, unpack_gptq, unpack_torchao
from newtune.model.torchao_files import CODES, SCALES, ZEROS
from newtune.outputs.shards import Checkpoint, NeedsWholeModel
from newtune.plan.parts import Method, QuantizationPlan


@dataclass(frozen=True)
class Layout:
    """How a layer lies in the files."""

    ends: tuple[str, ...]
    """Of the names of its tensors; the first tells that a layer is packed."""
    shape: Callable[[Mapping[str, tuple[int, ...]], QuantizationPlan], tuple[int, ...]]
    """Shapes by these ends → that of the weight, (out, in)."""
    unpack: Callable[[Mapping[str, Tensor], QuantizationPlan], Tensor]
    widths: frozenset[int] = frozenset({2, 4, 8})
    """Bits of a code that are read here."""
    optional: tuple[str, ...] = ()
    """Of the ends, those that a layer may lack."""


class UnpackedCheckpoint(Checkpoint):
    """Has `layer.weight` where the files have what it is packed into."""

    def __init__(self, packed: Checkpoint, plan: QuantizationPlan, layout: Layout) -> None:
        self.packed, self.plan, self.layout = packed, plan, layout
        first = f".{layout.ends[0]}"
        self.layers = {
            f"{name.removesuffix(first)}.weight": name.removesuffix(first)
            for name in packed.tensors
            if name.endswith(first)
        }
        self.tensors = packed.tensors

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name → shape of the weights, in the order of the files."""
        shapes: dict[str, tuple[int, ...]] = {}
        stored = self.packed.shapes
        for name, shape in stored.items():
            layer, _, end = name.rpartition(".")
            if f"{layer}.weight" not in self.layers or end not in self.layout.ends:
                shapes[name] = shape
            elif end == self.layout.ends[0]:
                parts = {e: stored[f"{layer}.{e}"] for e in self._ends(layer)}
                shapes[f"{layer}.weight"] = self.layout.shape(parts, self.plan)
        return shapes

    def read(self, name: str) -> Tensor:
        """Return one tensor; a packed one as what it stands for."""
        layer = self.layers.get(name)
        if layer is None:
            return self.packed.read(name)
        parts = {end: self.packed.read(f"{layer}.{end}") for end in self._ends(layer)}
        return self.layout.unpack(parts, self.plan)

    def _ends(self, layer: str) -> tuple[str, ...]:
        layout, stored = self.layout, self.packed.tensors
        return tuple(e for e in layout.ends if e not in layout.optional or f"{layer}.{e}" in stored)


def open_checkpoint(stored: Checkpoint, plan: QuantizationPlan | None) -> Checkpoint:
    """Return the tensors of a base by the names that its model has for them.

    Raises:
        NeedsWholeModel: packed in a way that is not read here.
    """
    layout = LAYOUTS.get(plan.method) if plan is not None and plan.stored else None
    if plan is None or layout is None:
        return stored
    if plan.bits not in layout.widths:
        raise NeedsWholeModel(f"codes of {plan.bits} bits lie across the words of its files")
    return UnpackedCheckpoint(stored, plan, layout)


def require_upright(model: nn.Module) -> None:
    """Refuse a model whose layers are (in, out): of a square one the files do not tell it.

    Raises:
        NeedsWholeModel: it has such layers.
    """
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise NeedsWholeModel("its layers are stored transposed")


def _gptq_shape(shapes: Mapping[str, tuple[int, ...]], _: QuantizationPlan) -> tuple[int, ...]:
    return (shapes["qweight"][1], shapes["g_idx"][0])


def _unpack_gptq(parts: Mapping[str, Tensor], plan: QuantizationPlan) -> Tensor:
    if parts["scales"].dtype != torch.float16:
        raise NeedsWholeModel(f"its scales are {parts['scales'].dtype}, not float16")
    first_format = plan.options["format"] == "gptq"
    return unpack_gptq(**parts, bits=plan.bits, zeros_less_one=first_format)


def _awq_shape(shapes: Mapping[str, tuple[int, ...]], _: QuantizationPlan) -> tuple[int, ...]:
    return (shapes["scales"][1], shapes["qweight"][0])


def _unpack_awq(parts: Mapping[str, Tensor], _: QuantizationPlan) -> Tensor:
    return unpack_awq(parts["qweight"], parts["qzeros"], parts["scales"].half())


def _torchao_shape(shapes: Mapping[str, tuple[int, ...]], _: QuantizationPlan) -> tuple[int, ...]:
    return shapes[CODES]


def _unpack_torchao(parts: Mapping[str, Tensor], _: QuantizationPlan) -> Tensor:
    return unpack_torchao(*parts.values())


LAYOUTS: Mapping[Method, Layout] = {
    "gptq": Layout(("qweight", "qzeros", "scales", "g_idx"), _gptq_shape, _unpack_gptq),
    "awq": Layout(("qweight", "qzeros", "scales"), _awq_shape, _unpack_awq),
    "torchao": Layout(
        (CODES, SCALES, ZEROS),
        _torchao_shape,
        _unpack_torchao,
        widths=frozenset(range(1, 9)),
        optional=(ZEROS,),
    ),
}
