"""Which models cannot keep packed examples apart, as far as the checkpoint's config alone tells.

What passes here is measured on the loaded model (`model/isolation.py`) before its first step.
"""

from collections.abc import Mapping

from newtune.errors import SetupError
from newtune.plan.facts import ModelFacts

_STATE = "carries a state from token to token, which would leak from one example to the next"
_LAYERS: Mapping[str, str] = {
    "linear_attention": _STATE,
    "hybrid": _STATE,
    "hybrid_sliding": _STATE,
    "conv": "has convolutions that reach over the tokens before, whatever example they belong to",
    **dict.fromkeys(
        (
            "compressed_sparse_attention", "heavily_compressed_attention", "indexed_attention",
            "minimax_m3_sparse",
        ),
        "chooses its keys in blocks of the whole row, which hold several examples",
    ),
}  # fmt: skip
"""transformers' name of a kind of layer → why its packed examples cannot be kept apart."""

_FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(
        ("falcon", "opt"), "builds its mask by itself and does not heed positions that restart"
    ),
    "gpt_oss": "does not hand the positions to its mask, so that packed examples see each other",
}
"""Family → what its config does not tell, and a test saw."""


def refuse_leaking(facts: ModelFacts, attention: str) -> None:
    """Refuse packing where examples of one sequence would see each other.

    Raises:
        SetupError: no attention implementation of this family keeps them apart.
    """
    why = why_it_leaks(facts)
    if why is not None:
        raise SetupError(
            f"`{facts.model_type}` cannot train on packed examples with `{attention}`: it {why}. "
            "Set `sample_packing: false` and `batch_flattening: false`."
        )


def why_it_leaks(facts: ModelFacts) -> str | None:
    """Return why packed examples would see each other; None where nothing speaks for it."""
    kinds = sorted(facts.layer_kinds & set(_LAYERS))
    if kinds:
        return _LAYERS[kinds[0]]
    if facts.stateful and not facts.layer_kinds:
        return _STATE
    if facts.model_type in _FAMILIES:
        return _FAMILIES[facts.model_type]
    if not facts.takes_positions:
        return "takes no positions, so that nothing tells it where an example begins"
    return None
