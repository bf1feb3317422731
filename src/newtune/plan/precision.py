"""Which number formats a run uses, from its precision keys and its device."""

from newtune.errors import ConfigError, Problem
from newtune.plan.parts import PrecisionPlan


def resolve_precision(
    *,
    bf16: bool | str | None,
    fp16: bool | None,
    bfloat16: bool | None,
    float16: bool | None,
    float32: bool | None,
    tf32: bool | str | None,
    device: str,
    bf16_is_fast: bool,
) -> tuple[PrecisionPlan, str]:
    """Return the number formats, and why.

    Mixed precision (`bf16`, `fp16`): frozen weights in 16 bit, trained weights in float32, forward
    under autocast. `bfloat16`, `float16`: pure 16 bit without autocast.

    Raises:
        ConfigError: the device cannot do what was asked.
    """
    on_cpu = device == "cpu"
    use_tf32 = _tf32(asked=tf32, on_cpu=on_cpu, is_ampere=bf16_is_fast)
    if fp16 or float16:
        key = "fp16" if fp16 else "float16"
        if on_cpu:
            raise ConfigError(
                [Problem(key, "needs a GPU; this run is on the CPU.", "Use `bf16: auto`.")]
            )
        if float16:
            return PrecisionPlan("float16", "float16", None, use_tf32), "float16: pure, no autocast"
        return PrecisionPlan("float16", "float32", "float16", use_tf32), "fp16: mixed precision"
    if bfloat16:
        return PrecisionPlan("bfloat16", "bfloat16", None, use_tf32), "bfloat16: pure, no autocast"
    if float32:
        return PrecisionPlan("float32", "float32", None, use_tf32), "float32: no mixed precision"
    return _bf16(asked=bf16, tf32=use_tf32, on_cpu=on_cpu, bf16_is_fast=bf16_is_fast)


def _tf32(*, asked: bool | str | None, on_cpu: bool, is_ampere: bool) -> bool | None:
    """Return whether float32 may round to TF32; None leaves torch's own choice."""
    if on_cpu or asked is None:
        return None
    if asked is True and not is_ampere:
        message = "this GPU has no TF32 arithmetic (it needs Ampere or newer)."
        raise ConfigError([Problem("tf32", message, "Use `tf32: auto`, or leave it out.")])
    return is_ampere if asked == "auto" else bool(asked)


def _bf16(
    *, asked: bool | str | None, tf32: bool | None, on_cpu: bool, bf16_is_fast: bool
) -> tuple[PrecisionPlan, str]:
    mixed = PrecisionPlan("bfloat16", "float32", "bfloat16", tf32)
    full = PrecisionPlan("float32", "float32", None, tf32)
    if asked is False:
        return full, "bf16: false, and no other precision asked for"
    if asked is True:
        if not bf16_is_fast and not on_cpu:
            raise ConfigError(
                [
                    Problem(
                        "bf16",
                        "this GPU has no bfloat16 arithmetic (it needs Ampere or newer).",
                        "Use `fp16: true` or `bf16: auto`.",
                    )
                ]
            )
        slow = "" if bf16_is_fast else "; this CPU only emulates it, float32 would be faster"
        return mixed, f"bf16: true{slow}"
    if bf16_is_fast:
        return mixed, "bf16: auto, and the device has bfloat16 arithmetic"
    if on_cpu:
        return full, "bf16: auto, but this CPU has neither AVX512-BF16 nor AMX"
    half = PrecisionPlan("float16", "float32", "float16", tf32)
    return half, "bf16: auto, but this GPU has no bfloat16 arithmetic: fp16"
