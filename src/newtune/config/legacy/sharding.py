"""Old spellings of FSDP → today's."""

from collections.abc import Mapping
from typing import Any

from newtune.config.legacy.translation import Translation
from newtune.config.parallel import FsdpSection
from newtune.errors import Problem
from newtune.lookup import did_you_mean

FSDP_WORDS: Mapping[str, tuple[str, Any]] = {
    "full_shard": ("reshard_after_forward", True),
    "shard_grad_op": ("reshard_after_forward", False),
    "hybrid_shard": ("sharding_strategy", "HYBRID_SHARD"),
    "hybrid_shard_zero2": ("sharding_strategy", "HYBRID_SHARD_ZERO2"),
    "no_shard": ("sharding_strategy", "NO_SHARD"),
    "offload": ("offload_params", True),
    "auto_wrap": ("auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
}
"""Word of the old `fsdp` list → key and value of `fsdp_config`."""


def fsdp_config_names(said: Translation) -> None:
    """The `fsdp_` prefix inside `fsdp_config` may be left out; the version stands outside."""
    config = said.values.get("fsdp_config")
    if not isinstance(config, dict):
        return
    for old in list(config):
        key = str(old).removeprefix("fsdp_")
        if key == "version":
            said.put("fsdp_version", config.pop(old), f"fsdp_config.{old}", "fsdp_version")
        elif key != old and key in FsdpSection.key_names():
            config.setdefault(key, config.pop(old))
            said.written_as[f"fsdp_config.{key}"] = f"fsdp_config.{old}"


def fsdp_final_state(said: Translation) -> None:
    """`fsdp_final_state_dict_type` lives in `fsdp_config`."""
    value = said.take("fsdp_final_state_dict_type")
    if value is not None:
        _fsdp_config(said).setdefault("final_state_dict_type", value)
        said.written_as["fsdp_config.final_state_dict_type"] = "fsdp_final_state_dict_type"
        said.notices.append(
            "`fsdp_final_state_dict_type` is now `fsdp_config: {final_state_dict_type: ...}`."
        )


def fsdp_list(said: Translation) -> None:
    """The words of the old `fsdp` list are keys of `fsdp_config`."""
    words = said.values.get("fsdp")
    if isinstance(words, str):
        words = words.split()
    if not isinstance(words, list) or not words:
        return
    unknown = [word for word in words if not _is_fsdp_word(word)]
    for word in unknown:
        path = f"fsdp.{words.index(word)}"
        hint = did_you_mean(str(word), FSDP_WORDS) or f"known: {', '.join(FSDP_WORDS)}"
        message = f"`{word}` is no sharding option; {hint}"
        said.problems.append(Problem(path, message))
    del said.values["fsdp"]
    config = _fsdp_config(said)
    for word in words:
        if _is_fsdp_word(word):
            key, value = FSDP_WORDS[word]
            config.setdefault(key, value)
            said.notices.append(f"`fsdp: {word}` is now `fsdp_config: {{{key}: {_yaml(value)}}}`.")
    said.written_as.setdefault("fsdp_config", "fsdp")


def _is_fsdp_word(word: object) -> bool:
    return isinstance(word, str) and word in FSDP_WORDS


def fsdp_version_1(said: Translation) -> None:
    """FSDP2 is what runs."""
    if said.values.get("fsdp_version") == 1:
        said.values["fsdp_version"] = 2
        said.notices.append("`fsdp_version: 1` runs as 2: the same sharding, done by FSDP2.")


def _fsdp_config(said: Translation) -> dict[str, Any]:
    config = said.values.get("fsdp_config")
    if not isinstance(config, dict):
        config = said.values["fsdp_config"] = {}
    return config


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
