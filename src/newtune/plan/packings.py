"""Checkpoints that are quantised already: what is told of each kind, and which are refused."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from newtune.plan.facts import ModelFacts
from newtune.plan.parts import Method

Stored = Mapping[str, Any]
"""A checkpoint's own `quantization_config`."""


@dataclass(frozen=True)
class Packing:
    """How a checkpoint that is quantised already is taken up."""

    method: Method
    bits: Callable[[Stored], int]
    options: Callable[[Stored], Mapping[str, Any]]
    name: str
    """As people write it."""
    refusal: Callable[[Stored, ModelFacts], str | None] = lambda stored, facts: None
    """Why a checkpoint cannot be taken up; None = it can."""


def _gptq_options(stored: Stored) -> Mapping[str, Any]:
    form = stored.get("checkpoint_format") or stored.get("format") or "gptq"
    return {"group_size": stored.get("group_size", 128), "format": form}


GPTQ_LAYERS = ("transformer.h.", "model.layers.", "gpt_neox.layers.", "model.decoder.layers.")
"""How the names of decoder layers begin in which optimum looks for packed ones (2.3)."""
WITH_CONV1D = frozenset({"gpt2"})
"""Families whose layers are transformers' `Conv1D`, which it cannot build from GPTQ files."""


def _gptq_refusal(stored: Stored, facts: ModelFacts) -> str | None:
    if facts.model_type in WITH_CONV1D:
        return f"over layers that transformers cannot read such files into ({facts.model_type})"
    if not any(name.startswith(GPTQ_LAYERS) for name in facts.linear_modules):
        return f"for `{facts.model_type}`, whose layers optimum does not find"
    odd = _unpackable(stored, facts)
    if odd is None:
        return None
    name, width, words = odd
    return (
        f"for `{facts.model_type}`, whose `{name}` is {width} wide, not a multiple of {words}: "
        "transformers takes it for a packed layer, and cannot read it"
    )


def _unpackable(stored: Stored, facts: ModelFacts) -> tuple[str, int, int] | None:
    """Return name, outputs and what they must be a multiple of, of a layer that fills no words.

    Zeros are packed along the outputs, into words of 32 bits. Where the checkpoint lists what it
    packs (`modules_in_block_to_quantize`), the other layers are ordinary ones.
    """
    bits = int(stored["bits"])
    words = 32 // math.gcd(32, bits)
    listed = stored.get("modules_in_block_to_quantize") or []
    packed = tuple(
        name for block in listed for name in ([block] if isinstance(block, str) else block)
    )
    for name, (_, width) in facts.linear_modules.items():
        inside = name.startswith(GPTQ_LAYERS) and (not packed or name.endswith(packed))
        if inside and width % words:
            return name.rpartition(".")[2], width, words
    return None


def _awq_options(stored: Stored) -> Mapping[str, Any]:
    size = stored.get("group_size", stored.get("q_group_size", 128))
    return {"group_size": size, "left_out": stored.get("modules_to_not_convert")}


SCALES_ACTIVATIONS = frozenset(
    {"bloom", "falcon", "gpt_bigcode", "gpt_neox", "gptj", "mpt", "starcoder2"}
)
"""Families whose AWQ checkpoints hold factors of activations beside the weights (transformers)."""


def _awq_refusal(stored: Stored, facts: ModelFacts) -> str | None:
    form = str(stored.get("version") or stored.get("format") or "gemm").lower()
    if form != "gemm":
        return f"in AWQ's `{form}` format; newtune reads `gemm`"
    if _awq_bits(stored) != 4 or not stored.get("zero_point", True):
        return "not in 4 bit with zero points, the only ones that AWQ's `gemm` format was made for"
    if facts.model_type in SCALES_ACTIVATIONS:
        return f"with factors of activations ({facts.model_type}), which newtune does not read"
    return None


def _awq_bits(stored: Stored) -> int:
    return int(stored.get("bits") or stored.get("w_bit") or 4)


TORCHAO_BITS: Mapping[str, Callable[[Stored], int]] = {
    "Int8WeightOnlyConfig": lambda options: 8,
    "Float8WeightOnlyConfig": lambda options: 8,
    "IntxWeightOnlyConfig": lambda options: int(options["weight_dtype"]["_data"].lstrip("int")),
}
"""torchao's kinds whose codes lie in the files one by one → bits of a code."""
TORCHAO_REFUSED: Mapping[str, str] = {
    "Activation": "which rounds what goes into its layers as well",
    "Int4WeightOnly": "which packs for one kernel on a GPU",
    "FqnToConfig": "which stores layers in several kinds",
}
"""Part of a kind's name → why a base of that kind is refused."""
PLAIN_FORM = "UNPACKED_TO_INT8"


def _torchao_kind(stored: Stored) -> tuple[str, int, Stored]:
    """Return name, version and options of what torchao made; older files have a word alone."""
    kinds = stored.get("quant_type")
    kind = kinds.get("default") if isinstance(kinds, Mapping) else None
    if kind is None:
        return str(kinds), 0, {}
    return kind["_type"], int(kind.get("_version", 1)), kind["_data"]


def _torchao_refusal(stored: Stored, _: ModelFacts) -> str | None:
    name, version, options = _torchao_kind(stored)
    if name not in TORCHAO_BITS:
        reason = next((why for part, why in TORCHAO_REFUSED.items() if part in name), "")
        known = ", ".join(TORCHAO_BITS)
        return f"as `{name}`{', ' * bool(reason)}{reason}; newtune reads {known}"
    if version != 2:
        return f"as `{name}` of version {version}; newtune reads version 2 (torchao 0.18)"
    form = options.get("intx_packing_format", {}).get("_data", PLAIN_FORM)
    if form != PLAIN_FORM:
        return f"as `{name}` in the form `{form}`, made for one kernel"
    if stored.get("include_input_output_embeddings"):
        return "with its embeddings, whose rows newtune reads plainly"
    return None


def _torchao_bits(stored: Stored) -> int:
    name, _, options = _torchao_kind(stored)
    return TORCHAO_BITS[name](options)


def _torchao_options(stored: Stored) -> Mapping[str, Any]:
    name, _, options = _torchao_kind(stored)
    size = options.get("granularity", {}).get("_data", {}).get("group_size")
    left_out = stored.get("modules_to_not_convert")
    return {"kind": name, "group_size": size, "left_out": left_out}


PACKINGS: Mapping[str, Packing] = {
    "bitsandbytes": Packing(
        "bitsandbytes", lambda c: 4 if c.get("load_in_4bit") else 8, lambda c: {}, "bitsandbytes"
    ),
    "gptq": Packing("gptq", lambda c: int(c["bits"]), _gptq_options, "GPTQ", _gptq_refusal),
    "awq": Packing("awq", _awq_bits, _awq_options, "AWQ", _awq_refusal),
    "torchao": Packing("torchao", _torchao_bits, _torchao_options, "torchao", _torchao_refusal),
}
"""`quant_method` of a checkpoint → how it is taken up; every other is refused by its name."""
