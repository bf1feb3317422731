"""In how many bits the frozen base is stored, from the keys and from what the checkpoint is."""

from collections.abc import Iterator, Mapping
from typing import Any

from newtune.errors import ConfigError, Problem
from newtune.plan.facts import ModelFacts
from newtune.plan.packings import PACKINGS, Stored
from newtune.plan.parts import AdapterPlan, Method, PrecisionPlan, QuantizationPlan
from newtune.plan.targets import read_directly
from newtune.plan.weights import BYTES

GIB = 1 << 30

UNPACKED: Mapping[str, str] = {"fp8": "FP8", "mxfp4": "MXFP4"}
"""`quant_method` of a checkpoint that is dequantised when it is loaded → its name."""


def unpacked_at_loading(
    facts: ModelFacts, precision: PrecisionPlan, *, adapter: str | None
) -> str | None:
    """Return what is to be known of a checkpoint that loading dequantises; None = it does not."""
    name = UNPACKED.get(str((facts.stored_quantized or {}).get("quant_method")))
    if name is None:
        return None
    dtype = precision.frozen_weights if adapter else precision.trained_weights
    return (
        f"the checkpoint is stored in {name} and dequantised when it is loaded: its weights take "
        f"{facts.parameters * BYTES[dtype] / GIB:.3g} GiB in {dtype}, as if they had never been "
        "quantised"
    )


def plan_quantization(
    facts: ModelFacts,
    precision: PrecisionPlan,
    *,
    adapter: str | None,
    four_bit: bool,
    eight_bit: bool,
    options: Mapping[str, Any],
    gptq: bool = False,
) -> tuple[QuantizationPlan | None, str]:
    """Return how the base is stored, and why; None = plainly.

    Raises:
        ConfigError: the checkpoint is quantised in a way that cannot be trained, or in another
            way than the keys ask for, or there is no adapter to train on it.
    """
    stored = facts.stored_quantized
    if gptq and (stored is None or stored.get("quant_method") != "gptq"):
        how = f"quantised by `{stored['quant_method']}`" if stored else "not quantised"
        hint = "Leave the key out, or give a GPTQ checkpoint; newtune makes none itself."
        raise _problem(f"is asked for, but the checkpoint of `base_model` is {how}", hint, "gptq")
    if stored is not None and stored.get("quant_method") not in UNPACKED:
        return _stored(stored, facts, adapter, asked=_asked_bits(adapter, four_bit, eight_bit))
    arguments: dict[str, Any] = {
        "bnb_4bit_compute_dtype": precision.autocast or precision.frozen_weights,
        **options,
    }
    plain = sorted(read_directly(facts) | facts.routers.keys() & facts.linear_modules.keys())
    if plain or "llm_int8_skip_modules" in arguments:  # they replace what is left out by itself
        given = arguments.get("llm_int8_skip_modules", ())
        arguments["llm_int8_skip_modules"] = [*given, *plain, facts.head_name]
    if four_bit or adapter == "qlora":
        key = "load_in_4bit" if four_bit else "adapter: qlora"
        return QuantizationPlan(4, arguments), f"{key}: bitsandbytes"
    if eight_bit:
        return QuantizationPlan(8, arguments), "load_in_8bit: bitsandbytes"
    return None, "not quantised" if stored is None else "ordinary weights once it is loaded"


def _asked_bits(adapter: str | None, four_bit: bool, eight_bit: bool) -> int | None:  # noqa: FBT001
    if four_bit or adapter == "qlora":
        return 4
    return 8 if eight_bit else None


def _stored(
    stored: Stored, facts: ModelFacts, adapter: str | None, *, asked: int | None
) -> tuple[QuantizationPlan, str]:
    """Take a checkpoint that is quantised already as it is."""
    method = str(stored.get("quant_method"))
    packing = PACKINGS.get(method)
    if packing is None:
        raise _problem(
            f"is quantised by `{method}`, which newtune cannot train on",
            "Give the checkpoint that is not quantised, with `load_in_4bit: true` where memory "
            "is short.",
        )
    refusal = packing.refusal(stored, facts)
    if refusal is not None:
        hint = "Give the checkpoint that is not quantised, with `load_in_4bit: true`."
        raise _problem(f"is packed by {packing.name} {refusal}", hint)
    bits = packing.bits(stored)
    if adapter is None:
        raise _problem(
            f"is stored in {bits} bit, so nothing of it can be trained without an adapter",
            "Add `adapter: lora`, or give the checkpoint that is not quantised.",
        )
    if asked is not None and (asked != bits or packing.method != "bitsandbytes"):
        raise _problem(
            f"is stored in {bits} bit by {packing.name}, and {asked} bit are asked for"
            + ("" if packing.method == "bitsandbytes" else " of bitsandbytes"),
            "Leave the key out (`adapter: lora` goes with it), or give the checkpoint that is not "
            "quantised.",
        )
    options = packing.options(stored)
    kind = f" ({options['kind']})" if "kind" in options else ""
    reason = f"the checkpoint is stored so by {packing.name}{kind}"
    return QuantizationPlan(bits, options, stored=True, method=packing.method), reason


def require_trainable(quantization: QuantizationPlan | None, adapter: AdapterPlan | None) -> None:
    """Refuse an adapter that cannot be on the layers of this base.

    Raises:
        ConfigError: with the reason.
    """
    if quantization is None or adapter is None:
        return
    problems = list(_untrainable(quantization, adapter))
    if problems:
        raise ConfigError(problems)


NO_DORA: frozenset[Method] = frozenset({"gptq"})
"""Whose layers PEFT has no DoRA for."""


def _untrainable(quantization: QuantizationPlan, adapter: AdapterPlan) -> Iterator[Problem]:
    name = next(p.name for p in PACKINGS.values() if p.method == quantization.method)
    if adapter.use_dora and quantization.method in NO_DORA:
        message = f"PEFT has no DoRA for the layers of {name}"
        hint = "Leave it out, or give the checkpoint that is not quantised, with `adapter: qlora`."
        yield Problem("peft_use_dora", message, hint)
    if not quantization.stored:
        return
    if isinstance(adapter.init, str) and adapter.init.startswith(("pissa", "olora")):
        reason = "takes a part out of the base's weights, which a quantised base cannot give"
        yield Problem("peft_init_lora_weights", f"`{adapter.init}` {reason}", "Leave the key out.")
    if adapter.repairs_quantization:
        message = "the base is stored quantised: what that took away is not known"
        yield Problem("peft.loftq_config", message, "Give the checkpoint that is not quantised.")


def _problem(message: str, hint: str, key: str = "base_model") -> ConfigError:
    return ConfigError([Problem(key, message, hint)])
