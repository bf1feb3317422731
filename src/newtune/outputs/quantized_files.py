"""Read one weight as a bitsandbytes base holds it: quantised and dequantised, layer by layer."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer

from newtune.model.quantization import require_library
from newtune.outputs.shards import Checkpoint, NeedsWholeModel
from newtune.plan.parts import QuantizationPlan


def quantized_reader(
    model: PreTrainedModel, checkpoint: Checkpoint, plan: QuantizationPlan, device: str
) -> Callable[[str], Tensor]:
    """Return how to read a tensor by its name in the files.

    `model` stands on the meta device and is used up: the library's own choice of the layers
    that it quantises is read off it.
    """
    require_library(plan.method)
    layers = _quantized_layers(model, plan)
    dtype = model.dtype

    def read(name: str) -> Tensor:
        tensor = checkpoint.read(name)
        layer = layers.get(name)
        if layer is None:
            return tensor
        if plan.stored:
            return _stored(tensor, name, checkpoint, plan.bits, device)
        return _there_and_back(tensor.to(dtype), layer, device)

    return read


def _quantized_layers(model: PreTrainedModel, plan: QuantizationPlan) -> dict[str, nn.Module]:
    """Return weight name → the empty quantised layer, for the layers that are quantised."""
    plain = {name: type(module) for name, module in model.named_modules()}
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=plan.bits == 4, load_in_8bit=plan.bits == 8, **plan.options
    )
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=plan.stored)
    quantizer.preprocess_model(model=model, dtype=model.dtype, device_map={"": "cpu"})
    replaced = {n: m for n, m in model.named_modules() if type(m) is not plain[n]}
    if any(issubclass(plain[name], Conv1D) for name in replaced):
        raise NeedsWholeModel("its layers are stored transposed")
    names = {f"{name}.weight": module for name, module in replaced.items()}
    prefix = f"{model.base_model_prefix}."
    return names | {name.removeprefix(prefix): module for name, module in names.items()}


def _there_and_back(weight: Tensor, layer: nn.Module, device: str) -> Tensor:
    """Quantise as loading does, and return what the quantised weight stands for."""
    empty: Any = layer.weight
    options = {name: value for name, value in empty.__dict__.items() if name != "SCB"}
    quantized = type(empty)(weight, requires_grad=False, **options).to(device)
    return cast("Tensor", dequantize_bnb_weight(quantized, _State()))


def _stored(tensor: Tensor, name: str, checkpoint: Checkpoint, bits: int, device: str) -> Tensor:
    import bitsandbytes as bnb

    if bits == 8:
        scale = checkpoint.read(f"{name.removesuffix('weight')}SCB").to(device)
        rows: Tensor = bnb.functional.int8_vectorwise_dequant(tensor.to(device), scale)
        return rows
    statistics = checkpoint.below(f"{name}.")
    weight = bnb.nn.modules.Params4bit.from_prequantized(
        data=tensor, quantized_stats=statistics, requires_grad=False, device=torch.device(device)
    )
    return cast("Tensor", dequantize_bnb_weight(weight))


class _State:
    """What transformers' dequantisation of an 8-bit weight asks the layer for."""

    SCB: Tensor | None = None
