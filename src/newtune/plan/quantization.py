"""In how many bits the frozen base is stored, from the keys and from what the checkpoint is."""

from collections.abc import Mapping
from typing import Any, Literal

from newtune.errors import ConfigError, Problem
from newtune.plan.adapters import read_directly
from newtune.plan.parts import ModelFacts, PrecisionPlan, QuantizationPlan

BITSANDBYTES = "bitsandbytes"


def plan_quantization(
    facts: ModelFacts,
    precision: PrecisionPlan,
    *,
    adapter: str | None,
    four_bit: bool,
    eight_bit: bool,
    options: Mapping[str, Any],
) -> tuple[QuantizationPlan | None, str]:
    """Return how the base is stored, and why; None = plainly.

    Raises:
        ConfigError: the checkpoint is quantised in a way that cannot be trained, or in another
            way than the keys ask for, or there is no adapter to train on it.
    """
    if facts.stored_quantized is not None:
        return _stored(facts.stored_quantized, adapter, four_bit=four_bit, eight_bit=eight_bit)
    arguments: dict[str, Any] = {
        "bnb_4bit_compute_dtype": precision.autocast or precision.frozen_weights,
        **options,
    }
    plain = sorted(read_directly(facts))
    if plain or "llm_int8_skip_modules" in arguments:  # they replace what is left out by itself
        given = arguments.get("llm_int8_skip_modules", ())
        arguments["llm_int8_skip_modules"] = [*given, *plain, facts.head_name]
    if four_bit or adapter == "qlora":
        key = "load_in_4bit" if four_bit else "adapter: qlora"
        return QuantizationPlan(4, arguments), f"{key}: bitsandbytes"
    if eight_bit:
        return QuantizationPlan(8, arguments), "load_in_8bit: bitsandbytes"
    return None, "not quantised"


def _stored(
    config: Mapping[str, Any], adapter: str | None, *, four_bit: bool, eight_bit: bool
) -> tuple[QuantizationPlan, str]:
    """Take a checkpoint that is quantised already as it is."""
    method = str(config.get("quant_method"))
    bits: Literal[4, 8] = 4 if config.get("load_in_4bit") else 8
    if method != BITSANDBYTES:
        raise _problem(
            f"is quantised by `{method}`, which newtune cannot train yet",
            "Give the checkpoint that is not quantised, with `load_in_4bit: true` where memory "
            "is short.",
        )
    if adapter is None:
        raise _problem(
            f"is stored in {bits} bit, so nothing of it can be trained without an adapter",
            "Add `adapter: lora`, or give the checkpoint that is not quantised.",
        )
    asked = 4 if four_bit or adapter == "qlora" else 8 if eight_bit else bits
    if asked != bits:
        raise _problem(
            f"is stored in {bits} bit by bitsandbytes, and {asked} bit are asked for",
            "Leave the key out, or give the checkpoint that is not quantised.",
        )
    return QuantizationPlan(bits, {}, stored=True), "the checkpoint is stored so by bitsandbytes"


def _problem(message: str, hint: str) -> ConfigError:
    return ConfigError([Problem("base_model", message, hint)])
