"""What `is_llama_derived_model` and its siblings say beside the checkpoint's own model type."""

from collections.abc import Mapping

from newtune.errors import ConfigError, Problem

FAMILIES: Mapping[str, frozenset[str]] = {
    "llama": frozenset({"arcee", "llama", "llama4_text", "smollm3", "stablelm"}),
    "mistral": frozenset({"ministral", "ministral3", "mistral", "mixtral"}),
    "qwen": frozenset(
        {
            "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe",
            "qwen3_next",
        }
    ),
    "falcon": frozenset({"falcon", "falcon_h1", "falcon_mamba"}),
}  # fmt: skip
"""Family → the model types that belong to it."""


def family_of(flags: Mapping[str, bool | None], model_type: str) -> tuple[str | None, str]:
    """Return the family whose conventions a flag brings to an unknown model type, and a notice.

    `flags` are the given values by family. Only Mistral's has an effect of its own (padding side
    left); what the others ask for happens anyway: a tokenizer without a padding token gets its
    end token. Where the checkpoint's type is known the flag changes nothing.

    Raises:
        ConfigError: a flag contradicts the checkpoint.
    """
    given = [family for family, flag in flags.items() if flag]
    if not given:
        return None, ""
    family = given[0]
    known = next((name for name, types in FAMILIES.items() if model_type in types), None)
    key = f"is_{family}_derived_model"
    if known is None and family == "mistral":
        return family, f"{key}: the tokenizer of this `{model_type}` pads at the left"
    if known is None:
        padding = "a tokenizer without a padding token gets its end token anyway"
        return None, f"{key} changes nothing for this `{model_type}`: {padding}"
    if known == family:
        return None, f"{key} changes nothing: the checkpoint says `{model_type}` itself"
    raise ConfigError(
        [Problem(key, f"contradicts the checkpoint, which is a `{model_type}`.", "Leave it out.")]
    )
