"""newtune's own layer over packed weights: unpacked for a product, and forgotten.

gptqmodel has such layers for AWQ, too. Its plain one multiplies float32 inputs in float16 and
rounds the scales to bfloat16, for good, at the first bfloat16 input (7.7.0:
`AwqTorchLinear.forward`); this one multiplies in the format of its inputs, by weights that stay
what the files hold. torchao's weights are tensors of a kind of their own, which few operations
know; here they are a layer's plain buffers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from newtune.model import torchao_files
from newtune.model.packed_weights import AWQ_PLACES, unpack_awq, unpack_torchao
from newtune.plan.parts import Method, QuantizationPlan

METHOD = "newtune_packed"
"""The name of these layers among transformers' quantisations."""

Unpack = Callable[..., Tensor]
"""A layer's buffers, in their order → its weight, (out, in)."""
Buffers = Mapping[str, Tensor]
"""Name in the files → empty tensor of that shape and dtype, on the meta device."""


class PackedLinear(nn.Linear):
    """A linear layer whose weight, (out, in), is unpacked whenever it is asked for."""

    def __init__(self, layer: nn.Linear, buffers: Buffers, unpack: Unpack) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias, self.unpack = layer.bias, unpack
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> Float[Tensor, "out in"]:  # type: ignore[override]
        """Return what the packed weight stands for."""
        return self.unpack(*self.buffers(recurse=False))

    def forward(self, input: Tensor) -> Tensor:
        """Multiply in the format of the input, or of the autocast."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        output: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            input, self.unpack, *self.buffers(recurse=False)
        )
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ whose backward pass unpacks W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unpack: Unpack, *packed: Tensor) -> Tensor:
        ctx.unpack = unpack
        ctx.save_for_backward(*packed)
        return nn.functional.linear(x, unpack(*packed).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        packed = ctx.saved_tensors
        product = gradient @ ctx.unpack(*packed).to(gradient.dtype)
        return product, None, *(None for _ in packed)


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What transformers is told of a base that is loaded into these layers."""

    def __init__(self, packed_by: Method, options: Mapping[str, Any], **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # registered below
        self.packed_by, self.options = packed_by, options


Found = Iterator[tuple[str, Buffers]]
"""Name and buffers of each layer that is packed."""


@dataclass(frozen=True)
class Form:
    """How layers are packed."""

    find: Callable[["PackedQuantizer", PreTrainedModel, Sequence[str]], Found]
    """Quantiser, empty model and files of its weights → what is packed."""
    unpack: Unpack


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts these layers into the empty model before its weights are read."""

    quantization_config: PackedConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] = (), **kwargs: Any
    ) -> PreTrainedModel:
        form = FORMS[self.quantization_config.packed_by]
        for name, buffers in list(form.find(self, model, checkpoint_files)):
            layer: Any = model.get_submodule(name)
            model.set_submodule(name, PackedLinear(layer, buffers, form.unpack))
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        for layer in model.modules():
            if isinstance(layer, PackedLinear):
                _hold_as_bytes(layer)
        return model

    def is_serializable(self) -> bool:
        """Say that it cannot be written: its config would name layers that nobody else has."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Say that an adapter trains on it."""
        return True


FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})


def _hold_as_bytes(layer: PackedLinear) -> None:
    """Let codes in float8 be bytes: gloo passes no float8 from one process to another."""
    for name, tensor in list(layer.named_buffers(recurse=False)):
        if tensor.dtype in FLOAT8:
            layer.register_buffer(name, tensor.view(torch.uint8))
            layer.unpack = partial(layer.unpack, kind=tensor.dtype)


def _find_awq(quantizer: PackedQuantizer, model: PreTrainedModel, _: Sequence[str]) -> Found:
    options = quantizer.quantization_config.options
    left_out = quantizer.get_modules_to_not_convert(
        model, options["left_out"], [*(model._keep_in_fp32_modules or ())], add_default_skips=True
    )
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and should_convert_module(name, left_out):
            yield name, awq_buffers(layer, options["group_size"])


def awq_buffers(layer: nn.Linear, group_size: int) -> Buffers:
    """Return what AWQ's `gemm` format has in place of a layer's weight."""
    rows, columns = layer.in_features, layer.out_features
    groups = 1 if group_size == -1 else rows // group_size
    words = columns // len(AWQ_PLACES)
    return {
        "qweight": _empty(rows, words, torch.int32),
        "qzeros": _empty(groups, words, torch.int32),
        "scales": _empty(groups, columns, torch.float16),
    }


def _empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(rows, columns, dtype=dtype, device="meta")


def _find_torchao(_: PackedQuantizer, model: PreTrainedModel, files: Sequence[str]) -> Found:
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in linear.items()}
    return torchao_files.packed_layers(files, shapes, prefix=f"{model.base_model_prefix}.")


FORMS: Mapping[Method, Form] = {
    "awq": Form(_find_awq, unpack_awq),
    "torchao": Form(_find_torchao, unpack_torchao),
}


def configure(plan: QuantizationPlan, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the arguments of loading: a config that names these layers, not a library's."""
    config.quantization_config = {
        "quant_method": METHOD,
        "packed_by": plan.method,
        "options": dict(plan.options),
    }
    return {"config": config}


def unpacked_layers(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield name, weight and bias of each of these layers."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, PackedLinear):
            yield name, layer.weight, layer.bias
