"""A base in 4 or 8 bit, by bitsandbytes: what `from_pretrained` is given, and what follows it."""

import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from newtune.errors import SetupError
from newtune.plan.parts import QuantizationPlan


def require_bitsandbytes() -> None:
    """Refuse to go on without the package.

    Raises:
        SetupError: with the line that installs it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SetupError(
            "a base in 4 or 8 bit needs the package `bitsandbytes`. "
            "Install it: pip install 'newtune[qlora]'"
        )


def quantized_loading(plan: QuantizationPlan, *, device: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`.

    Raises:
        SetupError: bitsandbytes is not installed.
    """
    require_bitsandbytes()
    # It says at every 8-bit product that it takes float16, and of a kernel that it has no other.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    arguments: dict[str, Any] = {"device_map": {"": device}}
    if not plan.stored:
        arguments["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=plan.bits == 4, load_in_8bit=plan.bits == 8, **plan.options
        )
    return arguments


def keep_layout(model: PreTrainedModel) -> None:
    """Let no evaluation on a CPU with AVX512 store the 4-bit weights anew in a layout of its own.

    That layout is for generation alone; training that goes on afterwards would read it wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def plain(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with its quantised layers as ordinary ones in `dtype`; `model` is used up.

    It is built anew from the weights, because a model that was read from 4-bit files remembers how
    and would be written in the same way.
    """
    dequantized: PreTrainedModel = model.dequantize(dtype)  # type: ignore[no-untyped-call]
    built: PreTrainedModel = type(dequantized).from_pretrained(
        None,
        config=dequantized.config,
        state_dict=_own_layout(dequantized),
        dtype=dtype,
        attn_implementation=dequantized.config._attn_implementation,
    )
    return built.requires_grad_(requires_grad=False)


def _own_layout(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights as the model's own layers hold them.

    Quantising turns the layers of GPT-2, which are stored as (in, out), into ordinary ones.
    """
    weights: dict[str, Tensor] = model.state_dict()
    with torch.device("meta"):
        own = type(model)._from_config(model.config)  # type: ignore[no-untyped-call]
    for name, layer in own.named_modules():
        if isinstance(layer, Conv1D) and isinstance(model.get_submodule(name), nn.Linear):
            weights[f"{name}.weight"] = weights[f"{name}.weight"].T.contiguous()
    return weights


def layers_with_own_arithmetic(model: nn.Module) -> list[nn.Module]:
    """Return the 4-bit layers, which multiply in a `compute_dtype` of their own."""
    return [
        m for m in model.modules() if isinstance(getattr(m, "compute_dtype", None), torch.dtype)
    ]


def layers_of_four_bits(model: nn.Module) -> list[Any]:
    """Return the 4-bit layers; `quant_state` holds what their packed weights stand for."""
    return [module for module in model.modules() if "quant_state" in vars(module)]
