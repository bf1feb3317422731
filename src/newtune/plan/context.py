"""Context parallel: what cannot share its sequences between processes, and why."""

from collections.abc import Iterator

from newtune.config.run import RunConfig
from newtune.errors import ConfigError, Problem
from newtune.plan.attention import PROVEN_FAMILIES
from newtune.plan.facts import ModelFacts

KEY = "context_parallel_size"
ATTENTIONS = ("newtune_packed", "sdpa", "xformers", "flash_attention_2", "flash_attention_3",
              "flash_attention_4")  # fmt: skip
"""Those that are one function of heads and mask, which gets other heads and another mask."""
COUNTS_BY_SHAPE = frozenset(ATTENTIONS) - {"sdpa"}
"""Those that read off the tensors how many query heads a key head has."""
LAYERS = frozenset({"full_attention", "sliding_attention"})
LENGTHS_MATTER = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that look how long the sequence is, and would see a part."""


def require_shareable(config: RunConfig, size: int, *, facts: ModelFacts, attention: str) -> None:
    """Check that a sequence can be shared by that many processes.

    Raises:
        ConfigError: what cannot be shared, each with the reason.
    """
    problems = [
        *_of_model(facts),
        *_of_heads(facts, size, attention),
        *_of_run(config, attention),
    ]
    if problems:
        raise ConfigError(problems)


def _of_model(facts: ModelFacts) -> Iterator[Problem]:
    family = facts.model_type
    if family not in PROVEN_FAMILIES:
        message = f"was not shown to be right for `{family}`"
        known = ", ".join(sorted(PROVEN_FAMILIES))
        yield Problem(KEY, message, f"Families that a test compared: {known}.")
    for kind in sorted(facts.layer_kinds - LAYERS):
        yield Problem(KEY, f"cannot share a sequence in layers of kind `{kind}`")
    for kind in sorted(facts.rotary_kinds & LENGTHS_MATTER):
        message = f"the model's positions are scaled by the length of the sequence (`{kind}`), of "
        yield Problem(KEY, f"{message}which a process would see a part")


def _of_heads(facts: ModelFacts, size: int, attention: str) -> Iterator[Problem]:
    heads, key_heads = facts.heads, facts.key_heads
    if heads is not None and heads % size:
        message = f"is {size}, but the model's {heads} attention heads cannot be dealt out evenly"
        yield Problem(KEY, message, f"Use a divisor of {heads}.")
    if key_heads is None or key_heads % size == 0:
        return
    if size % key_heads:
        message = f"is {size}, but the model's {key_heads} key heads cannot be dealt out evenly"
        yield Problem(KEY, message, f"Use a divisor or a multiple of {key_heads}.")
    elif attention not in COUNTS_BY_SHAPE:
        message = f"is more than the model's {key_heads} key heads, which `{attention}` cannot copy"
        hint = "Use `attn_implementation: newtune_packed` or flash_attention_2, or a smaller size."
        yield Problem(KEY, message, hint)


def _of_run(config: RunConfig, attention: str) -> Iterator[Problem]:
    if attention not in ATTENTIONS:
        message = f"`{attention}` cannot attend to a sequence that processes share"
        yield Problem("attn_implementation", message, f"It can be {', '.join(ATTENTIONS)}.")
    if (config.parallel.tensor_parallel_size or 1) > 1:
        message = f"excludes `{KEY}`: both deal out the heads of attention"
        yield Problem("tensor_parallel_size", message, "Keep one of them.")
    if config.training.neftune_noise_alpha is not None:
        message = f"its noise depends on the length of the sequence, of which with `{KEY}` each "
        yield Problem("neftune_noise_alpha", f"{message}process sees a part")
