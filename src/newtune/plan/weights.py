"""What each parameter takes in memory: stored bits, and what training it adds."""

import math
from collections.abc import Callable, Sequence

from torch import nn

from newtune.plan.facts import ModelFacts
from newtune.plan.parts import PrecisionPlan, QuantizationPlan
from newtune.plan.unfrozen import is_unfrozen, tied_head

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STATES = {"sgd": 0, "adafactor": 0, "lion": 1, "adagrad": 1, "rmsprop": 1, "muon": 1}
"""Optimizer → values that it remembers for each one it trains; 2 for all that are called Adam."""


def memory_of(
    facts: ModelFacts,
    precision: PrecisionPlan,
    quantization: QuantizationPlan | None,
    *,
    unfrozen: Sequence[str] | None,
    optimizer: str,
) -> Callable[[str, nn.Parameter], int]:
    """Return how many bytes a parameter takes, by its name.

    `unfrozen`: patterns of what a full fine-tuning trains, none = all; None = nothing is trained. A
    trained weight has a gradient and the optimizer's memory beside it.
    """
    head = tied_head(facts)
    copies = 2 + next((n for name, n in STATES.items() if optimizer.startswith(name)), 2)

    def bytes_of(name: str, parameter: nn.Parameter) -> int:
        values = math.prod(parameter.shape)
        if unfrozen is not None and (not unfrozen or is_unfrozen(name, head, unfrozen)):
            return values * BYTES[precision.trained_weights] * copies
        if quantization is not None and _is_quantized(name, facts, quantization):
            if quantization.method == "torchao":
                return bytes_one_by_one(values, quantization.options["group_size"])
            double = bool(quantization.options.get("bnb_4bit_use_double_quant"))
            return bytes_in(quantization.bits, values, double=double)
        return values * BYTES[precision.frozen_weights]

    return bytes_of


def bytes_in(bits: int, values: int, *, double: bool) -> int:
    """Return what a weight takes that is stored in few bits, with its scales.

    nf4 and fp4 keep a scale of 4 bytes for 64 values, or, quantised once more, of 1 byte and 4
    bytes for 256 of them. Those of 8 bit, one for a row, are left out.
    """
    if bits == 8:
        return values
    blocks = -(-values // 64)
    scales = blocks + 4 * -(-blocks // 256) if double else 4 * blocks
    return -(-values * bits // 8) + scales


def bytes_one_by_one(values: int, group_size: int | None) -> int:
    """Return what a weight takes whose codes have a byte each, however few bits they are of.

    A group has a scale of at most 4 bytes and a zero of 1; those of whole rows are left out.
    """
    return values + 5 * (-(-values // group_size) if group_size else 0)


def _is_quantized(name: str, facts: ModelFacts, plan: QuantizationPlan) -> bool:
    module, _, own = name.rpartition(".")
    skipped = plan.options.get("llm_int8_skip_modules") or plan.options.get("left_out") or ()
    left_out = module == facts.head_name or any(part in module for part in skipped)
    return own == "weight" and module in facts.linear_modules and not left_out
