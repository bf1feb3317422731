"""A base stored in few bits: what `from_pretrained` is given, and what follows it."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
from transformers.pytorch_utils import Conv1D

from newtune.errors import ModelError, SetupError
from newtune.model import gptq, packed
from newtune.plan.parts import Method, QuantizationPlan


@dataclass(frozen=True)
class Library:
    """What can hold a quantised base."""

    packages: tuple[str, ...]
    base: str
    """What needs them, in words."""
    install: str
    configure: Callable[[QuantizationPlan, PreTrainedConfig], Mapping[str, Any]]
    """Plan and the model's config → arguments of `from_pretrained`; none = as the checkpoint says.
    """
    settle: Callable[[PreTrainedModel], None]
    """Make a loaded model compute in one way, in training and out of it."""
    dequantize: Callable[[PreTrainedModel, torch.dtype], tuple[PreTrainedModel, torch.dtype]]
    """Make its quantised layers ordinary ones, in this dtype or one that rounds nothing away.

    Returns the model, which is used up, and the dtype.
    """


def require_library(method: Method) -> None:
    """Refuse to go on without the packages of a quantisation.

    Raises:
        SetupError: with the line that installs them.
    """
    library = LIBRARIES[method]
    missing = [name for name in library.packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(f"`{name}`" for name in missing)
        noun = "package" if len(missing) == 1 else "packages"
        raise SetupError(f"{library.base} needs the {noun} {names}. Install: {library.install}")


def quantized_loading(
    plan: QuantizationPlan, config: PreTrainedConfig, *, device: str
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`; `config` is the model's, and used up.

    Raises:
        SetupError: the library is not installed.
    """
    require_library(plan.method)
    return {"device_map": {"": device}, **LIBRARIES[plan.method].configure(plan, config)}


@contextmanager
def knowing() -> Iterator[None]:
    """Keep to itself what transformers says of a configuration that is given on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


OWN_LINEAR = ("FalconLinear",)
"""Classes of transformers that do what `nn.Linear` does, and that bitsandbytes would pass over."""


@contextmanager
def with_ordinary_layers() -> Iterator[None]:
    """Build the models' own kinds of linear layers as `nn.Linear`, which can be quantised."""
    register_patch_mapping(dict.fromkeys(OWN_LINEAR, nn.Linear))
    try:
        yield
    finally:
        unregister_patch_mapping(list(OWN_LINEAR))


def settle(model: PreTrainedModel, plan: QuantizationPlan) -> None:
    """Let an evaluation compute as training does, and leave the weights as they are stored.

    Raises:
        ModelError: no layer of the model is stored in few bits.
    """
    if plan.method == "bitsandbytes" and not any(map(_is_of_bitsandbytes, model.modules())):
        raise ModelError(
            f"nothing of this `{model.config.model_type}` is stored in {plan.bits} bit: "
            "bitsandbytes knows none of its layers as linear. Use `adapter: lora` without "
            "`load_in_4bit` and `load_in_8bit`."
        )
    LIBRARIES[plan.method].settle(model)


def plain(model: PreTrainedModel, plan: QuantizationPlan, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with its quantised layers as ordinary ones in `dtype`; `model` is used up.

    Weights unpacked to float16, which bfloat16 would round, make that float32.
    """
    dequantized, wide = LIBRARIES[plan.method].dequantize(model, dtype)
    return rebuilt(dequantized, wide).requires_grad_(requires_grad=False)


def rebuilt(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model built anew from its weights.

    One that was read from quantised files remembers how and would be written in the same way.
    """
    with knowing():
        built: PreTrainedModel = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=_own_layout(model),
            dtype=dtype,
            attn_implementation=model.config._attn_implementation,
        )
    return built


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


def _configure_bitsandbytes(plan: QuantizationPlan, _: PreTrainedConfig) -> dict[str, Any]:
    # It says at every 8-bit product that it takes float16, and of a kernel that it has no other.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if plan.stored:
        return {}
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=plan.bits == 4, load_in_8bit=plan.bits == 8, **plan.options
    )
    return {"quantization_config": config}


def _keep_layout(model: PreTrainedModel) -> None:
    """Let no evaluation on a CPU with AVX512 store the 4-bit weights anew in a layout of its own.

    That layout is for generation alone; training that goes on afterwards would read it wrong.
    """
    for layer in layers_of_four_bits(model):
        layer.support_avx512bf16_for_cpu = False


def _dequantize_bitsandbytes(
    model: PreTrainedModel, dtype: torch.dtype
) -> tuple[PreTrainedModel, torch.dtype]:
    dequantized: PreTrainedModel = model.dequantize(dtype)  # type: ignore[no-untyped-call]
    return dequantized, dtype


Unpacked = Iterable[tuple[str, Tensor, Tensor | None]]
"""Name, weight as the model's own layer holds it, and bias of each packed layer."""


def _put_unpacked(
    unpack: Callable[[PreTrainedModel], Unpacked],
) -> Callable[[PreTrainedModel, torch.dtype], tuple[PreTrainedModel, torch.dtype]]:
    """Return how to put ordinary layers into a model with packed ones."""

    def dequantize(
        model: PreTrainedModel, dtype: torch.dtype
    ) -> tuple[PreTrainedModel, torch.dtype]:
        for name, weight, bias in unpack(model):
            dtype = torch.promote_types(dtype, weight.dtype)
            layer = nn.Module()
            layer.register_parameter("weight", _frozen(weight, dtype))
            layer.register_parameter("bias", None if bias is None else _frozen(bias, dtype))
            model.set_submodule(name, layer)
        del model.config.quantization_config
        return model, dtype

    return dequantize


def _frozen(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.to(dtype).contiguous(), requires_grad=False)


def _leave(model: PreTrainedModel) -> None:
    """Do nothing: it computes in one way already."""


def layers_of_four_bits(model: nn.Module) -> list[Any]:
    """Return bitsandbytes' 4-bit layers.

    `quant_state` holds what their packed weights stand for; they multiply in a `compute_dtype` of
    their own.
    """
    layers = [module for module in model.modules() if _is_of_bitsandbytes(module)]
    if not layers:
        return []
    from bitsandbytes.nn.modules import Linear4bit

    return [layer for layer in layers if isinstance(layer, Linear4bit)]


def _is_of_bitsandbytes(module: nn.Module) -> bool:
    # Sharding gives a layer a class of its own, below the library's.
    return any(kind.__module__.startswith("bitsandbytes.") for kind in type(module).__mro__)


def _of_newtune(base: str) -> Library:
    """Return newtune's own layers, which need no package."""
    return Library((), base, "", packed.configure, _leave, _put_unpacked(packed.unpacked_layers))


LIBRARIES: Mapping[Method, Library] = {
    "bitsandbytes": Library(
        ("bitsandbytes",),
        "a base in 4 or 8 bit",
        "pip install 'newtune[qlora]'",
        _configure_bitsandbytes,
        _keep_layout,
        _dequantize_bitsandbytes,
    ),
    "gptq": Library(
        ("gptqmodel", "optimum"),
        "a GPTQ base",
        "make install-gptq (not pip: gptqmodel's own requirements would replace torch)",
        gptq.configure,
        gptq.settle,
        _put_unpacked(gptq.unpacked_layers),
    ),
    "awq": _of_newtune("an AWQ base"),
    "torchao": _of_newtune("a torchao base"),
}
