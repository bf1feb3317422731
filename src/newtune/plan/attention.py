"""Which attention implementation runs, and why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

from newtune.errors import SetupError
from newtune.lookup import did_you_mean
from newtune.plan.facts import ModelFacts

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


def is_installed(distribution: str) -> bool:
    """Tell whether a package is installed, by its name on the index."""
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class Setting:
    """What the choice of an attention implementation depends on."""

    device: str
    packed: bool = False
    half_precision: bool = True
    """Attention is computed in 16 bit."""
    capability: tuple[int, int] | None = None
    """The GPU's, in CUDA's numbers; None = unknown."""
    installed: Callable[[str], bool] = is_installed

    @property
    def on_cpu(self) -> bool:
        """Tell whether no CUDA device computes."""
        return not self.device.startswith("cuda")


@dataclass(frozen=True)
class Needs:
    """What an attention implementation cannot do without, besides CUDA."""

    distribution: str
    """flash-attn 2 and 4 share a module, so that only the package's name tells them apart."""
    install: str
    capability: tuple[int, int] = (0, 0)
    half_precision: bool = False


_NEEDS: Mapping[str, Needs] = {
    "flash_attention_2": Needs(
        "flash-attn", "pip install flash-attn --no-build-isolation", (8, 0), half_precision=True
    ),
    "flash_attention_3": Needs(
        "flash-attn-3", "build it from flash-attention's `hopper`", (9, 0), half_precision=True
    ),
    "flash_attention_4": Needs(
        "flash-attn-4", "pip install --pre flash-attn-4", (9, 0), half_precision=True
    ),
    "xformers": Needs("xformers", "pip install 'newtune[xformers]'"),
}
_ANYWHERE = ("eager", "sdpa", "flex_attention", PACKED_ATTENTION)

TAKES_BOUNDARIES = frozenset({PACKED_ATTENTION, *_NEEDS})
"""Those that are told where examples begin, and compute nothing across it."""


def choose_attention(requested: str | None, facts: ModelFacts, setting: Setting) -> tuple[str, str]:
    """Return the name for transformers' `attn_implementation` and the reason.

    Raises:
        SetupError: the requested one is unknown, its package or device is missing, or it does not
            compute what this model and precision ask for.
    """
    if requested is None:
        return _best(facts, setting)
    _require_known(requested)
    reason = _why_not(requested, facts, setting)
    if reason is not None:
        instead, why = _best(facts, setting)
        raise SetupError(
            f"attn_implementation: `{requested}` {reason}. Or leave the key out: newtune then "
            f"takes `{instead}` ({why})."
        )
    return requested, "as given by attn_implementation"


def _best(facts: ModelFacts, setting: Setting) -> tuple[str, str]:
    family = facts.model_type
    if setting.on_cpu and family in PROVEN_FAMILIES:
        why = "per packed example" if setting.packed else "per example, padding left out"
        return PACKED_ATTENTION, f"on CPU, attention {why} is the fastest"
    if "sdpa" not in facts.attentions:
        return "eager", f"sdpa does not compute what `{family}` does"
    if setting.on_cpu:
        return "sdpa", f"newtune's own attention is not proven for `{family}`"
    if not setting.installed("flash-attn"):
        return "sdpa", "flash-attn is not installed"
    reason = _why_not("flash_attention_2", facts, setting)
    if reason is not None:
        return "sdpa", f"flash_attention_2 {reason}"
    return "flash_attention_2", "flash-attn is installed"


def flattens(attention: str, *, packed: bool, batch_flattening: bool) -> tuple[bool, str]:
    """Return whether a micro-batch is one row, and why.

    Implementations that take boundaries cost nothing across them; the others would compute a
    square of the whole row.
    """
    if batch_flattening:
        return True, "batch_flattening"
    if not packed:
        return False, "neither sample_packing nor batch_flattening"
    if attention in TAKES_BOUNDARIES:
        return True, f"{attention} takes the boundaries of packed examples"
    return False, f"{attention} would compute the square of a longer row"


def _computes(name: str, facts: ModelFacts) -> bool:
    """Tell whether the model's code hands its attention to an implementation."""
    if name == PACKED_ATTENTION:
        return "own" in facts.attentions or facts.model_type in PROVEN_FAMILIES
    # xformers is registered as our own is, and knows no more than sdpa
    needed = {"own", "sdpa"} if name == "xformers" else {name.rstrip("_234")}
    return name == "eager" or needed <= facts.attentions


def _require_known(name: str) -> None:
    known = {*_ANYWHERE, *_NEEDS}
    if name not in known:
        hint = did_you_mean(name, known)
        raise SetupError(
            f"attn_implementation: `{name}` is not an attention implementation newtune can run; "
            f"{hint + ' ' if hint else ''}known: {', '.join(sorted(known))}."
        )


def _why_not(name: str, facts: ModelFacts, setting: Setting) -> str | None:
    """Return why an implementation cannot run here, and what would help; None if it can."""
    if name == "flex_attention" and setting.on_cpu:
        return "has no backward pass on CPU. Train on a CUDA device"
    if not _computes(name, facts):
        family = facts.model_type
        return (
            f"does not compute what `{family}` does: its code in transformers has no place for it"
        )
    if name not in _NEEDS:
        return None
    needs = _NEEDS[name]
    if setting.on_cpu:
        return "runs on CUDA only, and no CUDA device is visible"
    if not setting.installed(needs.distribution):
        return f"needs the package `{needs.distribution}`. Install it: {needs.install}"
    if setting.capability is not None and setting.capability < needs.capability:
        found, wanted = (".".join(map(str, c)) for c in (setting.capability, needs.capability))
        return f"needs a GPU of compute capability {wanted} or newer; this one has {found}"
    if needs.half_precision and not setting.half_precision:
        return "computes in 16 bit only. Set `bf16: auto`"
    return None
