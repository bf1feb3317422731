"""newtune's own layer over weights that AWQ packed: unpacked for a product, and forgotten.

gptqmodel has such layers, too. Its plain one multiplies float32 inputs in float16 and rounds the
scales to bfloat16, for good, at the first bfloat16 input (7.7.0: `AwqTorchLinear.forward`); this
one multiplies in the format of its inputs, by weights that stay what the files hold.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from newtune.model.packed_weights import AWQ_PLACES, unpack_awq
from newtune.plan.parts import QuantizationPlan

METHOD = "newtune_awq"
"""The name of these layers among transformers' quantisations."""


class AwqLinear(nn.Linear):
    """A linear layer whose weight, (out, in) in float16, is unpacked whenever it is asked for."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, group_size: int) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        rows, columns = layer.in_features, layer.out_features
        groups = 1 if group_size == -1 else rows // group_size
        self.in_features, self.out_features, self.bias = rows, columns, layer.bias
        words = columns // len(AWQ_PLACES)
        self.register_buffer("qweight", _empty(rows, words, torch.int32))
        self.register_buffer("qzeros", _empty(groups, words, torch.int32))
        self.register_buffer("scales", _empty(groups, columns, torch.float16))

    @property
    def weight(self) -> Float[Tensor, "out in"]:  # type: ignore[override]
        """Return what the packed weight stands for."""
        weight: Tensor = unpack_awq(self.qweight, self.qzeros, self.scales)
        return weight

    def forward(self, input: Tensor) -> Tensor:
        """Multiply in the format of the input, or of the autocast."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        output: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            input, self.qweight, self.qzeros, self.scales
        )
        return output if self.bias is None else output + self.bias.to(output.dtype)


def _empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(rows, columns, dtype=dtype, device="meta")


class _Product(torch.autograd.Function):
    """x Wᵀ whose backward pass unpacks W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(qweight, qzeros, scales)
        return nn.functional.linear(x, unpack_awq(qweight, qzeros, scales).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        return gradient @ unpack_awq(*ctx.saved_tensors).to(gradient.dtype), None, None, None


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What transformers is told of a base that is loaded into these layers."""

    def __init__(self, group_size: int, left_out: list[str] | None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # registered below
        self.group_size, self.left_out = group_size, left_out


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts these layers into the empty model before its weights are read."""

    quantization_config: PackedConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        config = self.quantization_config
        left_out = self.get_modules_to_not_convert(
            model, config.left_out, [*(model._keep_in_fp32_modules or ())], add_default_skips=True
        )
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and should_convert_module(name, left_out):
                model.set_submodule(name, AwqLinear(layer, config.group_size))
        return model

    def is_serializable(self) -> bool:
        """Say that it cannot be written: its config would name layers that nobody else has."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Say that an adapter trains on it."""
        return True


def configure(plan: QuantizationPlan, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the arguments of loading: a config that names these layers, not gptqmodel's."""
    stored = plan.options
    config.quantization_config = {
        "quant_method": METHOD,
        "group_size": stored["group_size"],
        "left_out": stored["left_out"],
    }
    return {"config": config}


def unpacked_layers(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield name, weight and bias of each of these layers."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, AwqLinear):
            yield name, layer.weight, layer.bias
