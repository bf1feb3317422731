"""A model's configuration, with fields changed by the user; its rotary positions among them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from newtune.config.rope import (
    NAMES,
    OF_THE_MODEL,
    SCALINGS,
    by_layer,
    missing_keys,
    type_of,
    wrong_scaling,
)
from newtune.errors import ConfigError, Problem
from newtune.lookup import did_you_mean, sentence
from newtune.plan.model import SCALED_BY_LISTS

KEY = "overrides_of_model_config"
ORIGINAL = "original_max_position_embeddings"
BASES = {"rope_theta": "full_attention", "rope_local_base_freq": "sliding_attention"}
"""Old names of the base of the angles → the kind of layers that it is for, where there are some."""
FIXED_ANGLES = frozenset({"recurrent_gemma"})
"""Families whose configuration has the field, and whose code takes no scaling."""


def override_config(
    config: PreTrainedConfig, overrides: Mapping[str, Any], *, path: str = KEY
) -> PreTrainedConfig:
    """Return a configuration with fields changed; mappings are merged, `rope_theta` survives.

    A field of the text part of a multimodal configuration may be given without naming that part.

    Raises:
        ConfigError: what is no field of this configuration, or cannot be its value.
    """
    if not overrides:
        return config
    values, problems = config.to_dict(), list[Problem]()
    for part, inner in _by_part(config, overrides).items():
        if part:
            own = getattr(config, part)
            values[part] = override_config(own, inner, path=f"{path}.{part}").to_dict()
        else:
            problems = list(_put(config, values, inner, path))
    if problems:
        raise ConfigError(problems)
    try:
        return type(config).from_dict(values)
    except StrictDataclassError as error:
        said = str(error).strip().splitlines()[-1].strip()
        raise ConfigError([Problem(path, f"{type(config).__name__} refuses it: {said}")]) from error


def _by_part(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the overrides of each part of the configuration; those of its own are under ""."""
    parts: dict[str, dict[str, Any]] = {}
    text = next(
        (p for p in config.sub_configs if getattr(config, p) is config.get_text_config()), ""
    )
    for name, value in overrides.items():
        if name in config.sub_configs and isinstance(value, Mapping):
            parts.setdefault(name, {}).update(value)
        elif text and name not in _fields(config) and name in _fields(getattr(config, text)):
            parts.setdefault(text, {})[name] = value
        else:
            parts.setdefault("", {})[name] = value
    return parts


def _fields(config: PreTrainedConfig) -> set[str]:
    values = config.to_dict()
    rotary = {*NAMES, *BASES} if "rope_parameters" in values else set()
    return {*values, *config.attribute_map, *rotary}


def _put(
    config: PreTrainedConfig, values: dict[str, Any], overrides: Mapping[str, Any], path: str
) -> Iterator[Problem]:
    """Change the values; yield what cannot be."""
    for name, value in overrides.items():
        if name in (*NAMES, *BASES):
            yield from _put_rotary(config, values, f"{path}.{name}", value)
        elif name not in _fields(config):
            hint = did_you_mean(name, _fields(config))
            message = f"is no field of {type(config).__name__}"
            known = f"It has: {', '.join(sorted(values))}."
            yield Problem(f"{path}.{name}", message, sentence(hint) or known)
        else:
            key = config.attribute_map.get(name, name)
            before = values.get(key)
            if isinstance(value, Mapping) and isinstance(before, Mapping):
                value = {**before, **value}
            values[key] = value


def _put_rotary(
    config: PreTrainedConfig, values: dict[str, Any], path: str, value: Any
) -> Iterator[Problem]:
    before = dict(values.get("rope_parameters") or {})
    name = path.rpartition(".")[2]
    if not before or config.model_type in FIXED_ANGLES or values.get("alibi"):
        message = f"`{config.model_type}` has no rotary positions that can be scaled"
        yield Problem(path, message, "Leave it out.")
        return
    given = {"rope_theta": value} if name in BASES else value
    layers = config.nested_rope_parameter_keys(before)
    if layers and not by_layer(given):
        given = {BASES.get(name, "full_attention"): given}
    problems = [*wrong_scaling(path, given), *_of_other_layers(config, given, layers, path)]
    yield from problems
    if problems:
        return
    if layers:
        values["rope_parameters"] = {
            **before, **{layer: _scaled(before[layer] or {}, given[layer]) for layer in given}
        }  # fmt: skip
    else:
        values["rope_parameters"] = _scaled(before, given)
    after = values["rope_parameters"]
    for scaled in [after[layer] for layer in given] if layers else [after]:
        yield from _unfit(config, values, path, scaled)


def _of_other_layers(
    config: PreTrainedConfig, given: Any, layers: Sequence[str], path: str
) -> Iterator[Problem]:
    """Yield what is given for kinds of layers that the model does not have."""
    if not layers and by_layer(given):
        message = f"got one for each of {', '.join(given)}; expected one for all layers"
        yield Problem(path, f"{message} of `{config.model_type}`")
    for layer in given if layers else ():
        if layer not in layers:
            message = f"no such kind of layers in `{config.model_type}`"
            yield Problem(f"{path}.{layer}", f"{message}; it has: {', '.join(layers)}")
        elif given[layer].get("truncate") is False:
            message = f"transformers rounds the range of `{config.model_type}` whatever this says"
            yield Problem(f"{path}.{layer}.truncate", message, "Leave it out.")


def _scaled(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a scaling; another type than before leaves of it only what is the model's own."""
    kind = type_of(given) or type_of(before) or "default"
    if kind != type_of(before):
        before = {key: value for key, value in before.items() if key in OF_THE_MODEL}
    merged = {**before, **given, "rope_type": kind}
    merged.pop("type", None)
    return merged


def _unfit(
    config: PreTrainedConfig, values: dict[str, Any], path: str, scaled: Mapping[str, Any]
) -> Iterator[Problem]:
    """Yield what this model lacks of the scaling, or has in another size."""
    kind = scaled["rope_type"]
    if kind in SCALINGS:
        yield from missing_keys(path, kind, scaled)
    if kind == "default" and "factor" in scaled:
        known = ", ".join(name for name in SCALINGS if name != kind)
        message = f"is missing, and the checkpoint has no scaling; known: {known}"
        yield Problem(f"{path}.type", message)
    if config.model_type in SCALED_BY_LISTS and kind not in ("default", "longrope"):
        yield Problem(
            f"{path}.type",
            f"got `{kind}`; the code of `{config.model_type}` takes `longrope` alone",
        )
    for key in ("short_factor", "long_factor"):
        angles, count = _angles(values, scaled), len(scaled.get(key, ()))
        if key in scaled and count != angles:
            message = f"got {count} numbers; expected {angles}, one for each angle of the model"
            yield Problem(f"{path}.{key}", message)
    if ORIGINAL in values and ORIGINAL in scaled:  # Phi-3: its own field would win
        values[ORIGINAL] = scaled[ORIGINAL]


def _angles(values: Mapping[str, Any], scaled: Mapping[str, Any]) -> int:
    width = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    return int(width * (scaled.get("partial_rotary_factor") or 1.0)) // 2
