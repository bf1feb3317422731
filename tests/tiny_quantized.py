"""Tiny checkpoints stored quantised, packed by hand: no quantising library is needed to make one.

folder = save_quantized_checkpoint(tmp_path / "base", "gptq")     # a Llama, two layers
folder = save_quantized_checkpoint(tmp_path / "base", "gptq-8", "qwen2", seed=3)
weights = stood_for(folder)                       # name → the float32 weight that is stored
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tiny import tiny_model, tiny_tokenizer

GROUP = 32
WIDE: Mapping[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
"""Widths of multiples of 64, as all real models have and some kernels need."""

Packed = tuple[dict[str, Tensor], Tensor]
"""What lies in the file, by the ends of the names, and the weight that it stands for."""


def save_quantized_checkpoint(
    folder: Path | str, method: str, family: str = "llama", *, seed: int = 0, **config: Any
) -> Path:
    """Write a tiny model whose linear layers, but for the head, are stored as `method` does it."""
    folder = Path(folder)
    model = tiny_model(family, seed=seed, **{**WIDE, **config})
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if m is not head}
    linear = [n for n, m in layers.items() if isinstance(m, nn.Linear | Conv1D)]
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    weights = {}
    for name in linear:
        weight = stored.pop(f"{name}.weight")
        turned = weight.T if isinstance(layers[name], Conv1D) else weight  # GPT-2's are (in, out)
        packed, weights[name] = PACKERS[method](turned)
        stored |= {f"{name}.{end}": tensor for end, tensor in packed.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(weights, folder / "stood-for.st")
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = dict(CONFIGS[method])
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def stood_for(folder: Path) -> dict[str, Tensor]:
    """Return layer → the weight that its packed form stands for, (out, in)."""
    return load_file(folder / "stood-for.st")


def _rounded(weight: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round each group of a row to whole numbers; returns codes, zeros and scales as (in, out).

    `codes - zeros` times `scales` is the weight, a row of zeros and scales for every group.
    """
    groups = weight.T.reshape(-1, GROUP, weight.shape[0])  # group, place, out
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / (levels - 1)).half()
    zeros = (-low / scales.float()).round().clamp(1, levels - 1)
    codes = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, levels - 1)
    return codes.reshape(weight.T.shape).long(), zeros.long(), scales


def _value(codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    rows = torch.arange(len(codes)) // GROUP
    return (scales[rows] * (codes - zeros[rows]).half()).float().T.contiguous()


def _packed(codes: Tensor, bits: int, order: tuple[int, ...]) -> Tensor:
    """Put 32 / bits columns into each number of 32 bits, the first of `order` lowest."""
    count = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // count, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= codes[:, column::count] << (bits * place)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _gptq(bits: int, *, first_format: bool = True) -> Callable[[Tensor], Packed]:
    """Pack along the inputs; the first format stores each zero less one."""

    def pack(weight: Tensor) -> Packed:
        codes, zeros, scales = _rounded(weight.float(), 1 << bits)
        order = tuple(range(32 // bits))
        tensors = {
            "qweight": _packed(codes.T.contiguous(), bits, order).T.contiguous(),
            "qzeros": _packed(zeros - int(first_format), bits, order),
            "scales": scales,
            "g_idx": torch.arange(len(codes), dtype=torch.int32) // GROUP,
        }
        return tensors, _value(codes, zeros, scales)

    return pack


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _awq(weight: Tensor) -> Packed:
    """Pack along the outputs, eight columns to a word in AWQ's order."""
    codes, zeros, scales = _rounded(weight.float(), 16)
    words = {"qweight": _packed(codes, 4, AWQ_ORDER), "qzeros": _packed(zeros, 4, AWQ_ORDER)}
    return {**words, "scales": scales}, _value(codes, zeros, scales)


def _gptq_config(bits: int, form: str = "gptq") -> dict[str, Any]:
    common = {"bits": bits, "group_size": GROUP, "desc_act": False, "sym": False}
    return {"quant_method": "gptq", "checkpoint_format": form, **common, "lm_head": False}


def _fp8(weight: Tensor) -> Packed:
    """Round to float8, with a scale for every block of 32 × 32."""
    blocks = weight.float().unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP))
    scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    value = (codes.float() * scales[:, None, :, None]).reshape(weight.shape)
    return {"weight": codes.reshape(weight.shape), "weight_scale_inv": scales}, value


FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _mxfp4(weight: Tensor) -> Packed:
    """Pack (expert, in, out) as gpt-oss does: 32 inputs share a power of two, two to a byte."""
    groups = weight.transpose(1, 2).unflatten(2, (-1, GROUP))  # expert, out, group, place
    exponents = (groups.abs().amax(-1) / 6).log2().ceil()
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled.abs()[..., None] - FP4).abs().argmin(-1)
    value = (FP4[codes] * scaled.sign() * exponents.exp2()[..., None]).flatten(2).transpose(1, 2)
    nibbles = (codes + 8 * (scaled < 0)).to(torch.uint8)
    tensors = {
        "blocks": nibbles[..., 0::2] | (nibbles[..., 1::2] << 4),
        "scales": (exponents + 127).to(torch.uint8),
    }
    return tensors, value.contiguous()


def save_mxfp4_checkpoint(folder: Path | str, *, seed: int = 0) -> Path:
    """Write a tiny gpt-oss whose experts are stored in MXFP4."""
    folder = Path(folder)
    tiny_model("gpt_oss", seed=seed, **WIDE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    weights = {}
    for name in [n for n in stored if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        packed, weights[name] = _mxfp4(stored.pop(name).float())
        stored |= {f"{name}_{end}": tensor for end, tensor in packed.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(weights, folder / "stood-for.st")
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def _blocked(weight: Tensor, columns: int) -> Tensor:
    return weight.float().unflatten(1, (columns, -1))  # out, group, place


def _torchao(bits: int, scale_dtype: torch.dtype, group: int | None) -> Callable[[Tensor], Packed]:
    """Give every code a byte of its own, as torchao's whole numbers of `bits` bits."""

    def pack(weight: Tensor) -> Packed:
        blocks = _blocked(weight, weight.shape[1] // group if group else 1)
        scales = (blocks.abs().amax(-1) / (2 ** (bits - 1) - 0.5)).to(scale_dtype)
        zeros = torch.zeros(scales.shape, dtype=torch.int8)
        if group:  # torchao's own are 0 but for asymmetric codes
            zeros[:, 0] = 1
        codes = blocks / scales.float()[..., None] + zeros[..., None]
        codes = codes.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)
        value = (codes - zeros[..., None]).to(scale_dtype) * scales[..., None]
        parts = {"qdata": codes.flatten(1), "scale": scales, "zero_point": zeros}
        return {f"_weight_{name}": part for name, part in parts.items()}, value.flatten(1).float()

    return pack


def _torchao_float8(weight: Tensor) -> Packed:
    scales = weight.float().abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    codes = (weight / scales).to(torch.float8_e4m3fn)
    return {"_weight_qdata": codes, "_weight_scale": scales}, codes.float() * scales


def _torchao_config(kind: str, **options: Any) -> dict[str, Any]:
    """Return what `save_pretrained` of transformers 5.23 writes, less what is never asked for."""
    default = {"_type": kind, "_version": 2, "_data": options}
    return {
        "quant_method": "torchao",
        "quant_type": {"default": default},
        "modules_to_not_convert": None,
        "include_input_output_embeddings": False,
        "untie_embedding_weights": False,
    }


PER_ROW = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
PER_GROUP = {"_type": "PerGroup", "_version": 1, "_data": {"group_size": GROUP}}


PACKERS: Mapping[str, Callable[[Tensor], Packed]] = {
    "gptq": _gptq(4),
    "gptq-8": _gptq(8),
    "gptq-v2": _gptq(4, first_format=False),
    "awq": _awq,
    "fp8": _fp8,
    "torchao": _torchao(8, torch.float32, None),
    "torchao-4": _torchao(4, torch.bfloat16, GROUP),
    "torchao-float8": _torchao_float8,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gptq": _gptq_config(4),
    "gptq-8": _gptq_config(8),
    "gptq-v2": _gptq_config(4, "gptq_v2"),
    "fp8": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [GROUP, GROUP],
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    },
    "torchao": _torchao_config("Int8WeightOnlyConfig", granularity=PER_ROW),
    "torchao-4": _torchao_config(
        "IntxWeightOnlyConfig",
        granularity=PER_GROUP,
        weight_dtype={"_type": "torch.dtype", "_data": "int4"},
        intx_packing_format={"_type": "IntxPackingFormat", "_data": "UNPACKED_TO_INT8"},
    ),
    "torchao-float8": _torchao_config("Float8WeightOnlyConfig", granularity=PER_ROW),
}
"""Method → what `config.json` says of it."""

needs_gptqmodel = pytest.mark.skipif(
    find_spec("gptqmodel") is None, reason="needs gptqmodel: make install-gptq"
)
"""A mark for tests that load what GPTQ packed; making such files needs no library."""
needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="needs torchao: make install-gptq"
)
"""A mark for tests that compare with torchao itself."""
