"""Which attention implementation runs, and why."""

import importlib.util
from collections.abc import Mapping

from newtune.errors import SetupError
from newtune.lookup import did_you_mean
from newtune.plan.parts import ModelFacts

PACKED_ATTENTION = "newtune_packed"
"""Our own attention per packed example (`kernels/packed_attention.py`)."""

RUNS_ON_CPU = frozenset({"eager", "sdpa", PACKED_ATTENTION})
"""Those whose forward and backward pass a CPU can compute."""


PROVEN_FAMILIES = frozenset(
    {
        "cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral",
        "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Families whose isolation and equality with eager attention the tests prove for our attention."""

_PACKAGES: Mapping[str, tuple[str, str]] = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "build FlashAttention 3 from its repository"),
}
"""Implementation → the module it needs, and how to get it."""


def choose_attention(
    requested: str | None, facts: ModelFacts, *, packed: bool, device: str
) -> tuple[str, str]:
    """Return the name for transformers' `attn_implementation` and the reason.

    Raises:
        SetupError: the requested one is unknown, its package or device is missing, or the model
            does not compute its attention with it.
    """
    on_cpu = not device.startswith("cuda")
    model_type = facts.model_type
    if requested is not None:
        _require_runnable(requested, on_cpu=on_cpu)
        _require_computed(requested, facts)
        return requested, "as given by attn_implementation"
    if on_cpu and model_type in PROVEN_FAMILIES:
        why = "per packed example" if packed else "per example, padding left out"
        return PACKED_ATTENTION, f"on CPU, attention {why} is the fastest"
    if "sdpa" not in facts.attentions:
        return "eager", f"sdpa does not compute what `{model_type}` does"
    if on_cpu:
        return "sdpa", f"newtune's own attention is not proven for `{model_type}`"
    if "flash_attention" in facts.attentions and not on_cpu and _installed("flash_attn"):
        return "flash_attention_2", "flash-attn is installed"
    return "sdpa", "flash-attn is not installed, or not for this model"


def flattens(attention: str, *, packed: bool, batch_flattening: bool) -> tuple[bool, str]:
    """Return whether a micro-batch is one row, and why.

    Implementations that take boundaries cost nothing across them; the others would compute a
    square of the whole row.
    """
    if batch_flattening:
        return True, "batch_flattening"
    if not packed:
        return False, "neither sample_packing nor batch_flattening"
    if attention == PACKED_ATTENTION or attention.startswith("flash_attention"):
        return True, f"{attention} takes the boundaries of packed examples"
    return False, f"{attention} would compute the square of a longer row"


def _require_runnable(name: str, *, on_cpu: bool) -> None:
    known = {"eager", "sdpa", "flex_attention", PACKED_ATTENTION, *_PACKAGES}
    if name not in known:
        hint = did_you_mean(name, known)
        raise SetupError(
            f"attn_implementation: `{name}` is not an attention implementation newtune can run; "
            f"{hint + ' ' if hint else ''}known: {', '.join(sorted(known))}."
        )
    if on_cpu and name == "flex_attention":
        raise SetupError(
            "attn_implementation: `flex_attention` has no backward pass on CPU. Leave the key out "
            f"(newtune then takes `{PACKED_ATTENTION}`), or train on a CUDA device."
        )
    if on_cpu and name in _PACKAGES:
        raise SetupError(
            f"attn_implementation: `{name}` runs on CUDA only, and no CUDA device is visible. "
            f"Leave the key out: newtune then takes `{PACKED_ATTENTION}` on CPU."
        )
    if name in _PACKAGES and not _installed(_PACKAGES[name][0]):
        module, remedy = _PACKAGES[name]
        raise SetupError(
            f"attn_implementation: `{name}` needs the package `{module}`, which is not installed. "
            f"Install it ({remedy}), or leave the key out to use sdpa."
        )


def _require_computed(name: str, facts: ModelFacts) -> None:
    """Refuse an implementation that the model's code does not hand its attention to."""
    needed = "own" if name == PACKED_ATTENTION else name.rstrip("_234")
    proven = name == PACKED_ATTENTION and facts.model_type in PROVEN_FAMILIES
    if name == "eager" or needed in facts.attentions or proven:
        return
    raise SetupError(
        f"attn_implementation: `{name}` does not compute what `{facts.model_type}` does: its code "
        "in transformers has no place for it. Leave the key out, or set `eager`."
    )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
