"""LoftQ: an adapter that starts by giving back what quantising the base took away."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight, get_bnb_param_type
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from newtune.errors import ModelError


@torch.no_grad()
def repair_quantization(model: PeftModel, original: nn.Module) -> tuple[float, float]:
    """Set each LoRA on a quantised layer to the best repair of its rank.

    `original` is the base before it was quantised. Returns what quantising took away and what of
    it is left, as Frobenius norms over all adapted layers.

    Source: https://arxiv.org/abs/2310.08659, one iteration over a base that stays as it is.

    Raises:
        ModelError: no adapted layer is quantised.
    """
    before = after = 0.0
    for name, layer in _quantized_layers(model):
        module = original.get_submodule(name)
        weight = module.get_parameter("weight").float()
        if isinstance(module, Conv1D):  # stored as (in, out); bitsandbytes stores all as (out, in)
            weight = weight.T
        lost = weight - dequantize_module_weight(layer.get_base_layer()).float().to(weight.device)
        left = lost - _start(layer, lost)
        before, after = before + float(lost.square().sum()), after + float(left.square().sum())
    if not before:
        raise ModelError("peft.loftq_config: none of the adapted layers is quantised")
    return math.sqrt(before), math.sqrt(after)


def _start(layer: LoraLayer, lost: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Set A and B so that the layer's output gains `lost` as well as the rank allows."""
    rank, scale = layer.r["default"], layer.scaling["default"]
    left, values, right = torch.linalg.svd(lost, full_matrices=False)
    root = values[:rank].sqrt()
    down, up = root[:, None] * right[:rank], left[:, :rank] * root
    layer.lora_A["default"].get_parameter("weight").copy_(down)
    layer.lora_B["default"].get_parameter("weight").copy_(up / scale)
    repaired: Tensor = up @ down
    return repaired


def _quantized_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if get_bnb_param_type(module.get_base_layer().get_parameter("weight")):
            yield name, module
