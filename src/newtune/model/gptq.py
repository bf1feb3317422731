"""A base that GPTQ packed: gptqmodel's layers, computing in one way whatever the machine."""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GPTQConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from newtune.plan.parts import QuantizationPlan

KERNEL = "gptq_torch"
"""gptqmodel's plain one: it unpacks a layer and multiplies, for every width, on every device.

What `auto_trainable` takes on a CPU (gptqmodel 7.7.0), by its source, packs the layers anew when an
evaluation in 16 bit comes before the first step, for good, and passes no gradient from then on.
"""


def configure(plan: QuantizationPlan, _: PreTrainedConfig) -> dict[str, Any]:
    """Return the arguments of loading; the rest the checkpoint says itself."""
    import_quietly()
    return {"quantization_config": GPTQConfig(bits=plan.bits, backend=KERNEL)}


def settle(model: PreTrainedModel) -> None:
    """Take away the compiled unpacking: two minutes of compiling for a model of two layers."""
    for _, layer in packed_layers(model):
        vars(layer).pop("dequantize_weight", None)


def unpacked_layers(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield name, weight as the model's own layer holds it, and bias of each packed layer."""
    with torch.device("meta"):
        empty = type(model)(model.config)
    for name, layer in list(packed_layers(model)):
        weight = layer.dequantize_weight()  # (in, out)
        transposed = isinstance(empty.get_submodule(name), Conv1D)
        yield name, weight if transposed else weight.T, layer.bias


def packed_layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Yield gptqmodel's layers by their names."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    for name, module in model.named_modules():
        if isinstance(module, BaseQuantLinear):
            yield name, module


def import_quietly() -> None:
    """Import the package without its banner; it reports errors alone from then on."""
    from logbar import LogBar

    LogBar.shared().setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import gptqmodel  # noqa: F401
