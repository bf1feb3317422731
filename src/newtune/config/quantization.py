"""Bases stored in 8 or 4 bit."""

from collections.abc import Mapping
from typing import Any

from newtune.config.section import Section

BNB_DEFAULTS: Mapping[str, Any] = {
    "llm_int8_has_fp16_weight": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
_DTYPES = ("float32", "bfloat16", "float16")
BNB_OPTIONS: Mapping[str, tuple[Any, ...] | type] = {
    "llm_int8_threshold": float,
    "llm_int8_skip_modules": list,
    "llm_int8_has_fp16_weight": bool,
    "bnb_4bit_compute_dtype": _DTYPES,
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_use_double_quant": bool,
    "bnb_4bit_quant_storage": (*_DTYPES, "uint8", "int8"),
}
"""Option of bitsandbytes → its type, or the values it may have."""


class QuantizationSection(Section):
    """Quantised base models, and quantisation-aware training."""

    load_in_8bit: bool = False
    """Store the frozen base in 8 bit (bitsandbytes). Needs an adapter."""
    load_in_4bit: bool = False
    """Store the frozen base in 4 bit (bitsandbytes). Needs an adapter; `adapter: qlora` sets it."""
    bnb_config_kwargs: dict[str, Any] | None = None
    """bitsandbytes options, merged over `llm_int8_has_fp16_weight: false`,
    `bnb_4bit_quant_type: nf4`, `bnb_4bit_use_double_quant: true`. Others:
    `bnb_4bit_compute_dtype` (the run's arithmetic where it is not given), `bnb_4bit_quant_storage`,
    `llm_int8_threshold`, `llm_int8_skip_modules`."""
    gptq: bool = False
    """The base is a GPTQ checkpoint; an error where it is none. It is seen without the key, too.
    Needs `adapter: lora` and `make install-gptq`."""
    quantize_moe_experts: bool = False
    """Quantise the experts of a mixture too."""
    model_quantization_config: str | None = None
    """transformers quantisation class the checkpoint is loaded with."""
    model_quantization_config_kwargs: dict[str, Any] | None = None
    """Arguments of `model_quantization_config`."""
    qat: dict[str, Any] | None = None
    """Quantisation-aware training: fake quantisation during the run."""
    quantization: dict[str, Any] | None = None
    """Quantisation of the trained model afterwards."""
    fp8: bool = False
    """Multiply in 8-bit floating point (torchao)."""
    fp8_config: dict[str, Any] | None = None
    """Options of `fp8`."""
    fp8_enable_fsdp_float8_all_gather: bool | None = None
    """Gather sharded weights in 8-bit floating point."""
