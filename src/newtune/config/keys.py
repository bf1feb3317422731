"""Every key there is: section, type, default, meaning, and what newtune does with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from newtune.config.idle import IDLE, never
from newtune.config.kinds import describe
from newtune.config.later import why_later
from newtune.config.legacy import OldDatasetSpellings, OldSpellings
from newtune.config.noop import NO_OPS
from newtune.config.patterns import matches
from newtune.config.rules import RULES
from newtune.config.run import SECTIONS
from newtune.config.section import Section
from newtune.errors import ConfigError, Problem
from newtune.lookup import nearest

Status = Literal["acts", "translated", "no-op", "refused"]


@dataclass(frozen=True)
class KeyInfo:
    """A key of the YAML. List entries are written `*`: `datasets.*.path`."""

    name: str
    section: str
    takes: str
    default: Any
    meaning: str
    status: Status
    reason: str = ""
    """Why it is refused or changes nothing."""
    rules: tuple[str, ...] = ()


@cache
def all_keys() -> Mapping[str, KeyInfo]:
    """Return every key by name, in the order of the reference; old spellings come last."""
    found: dict[str, KeyInfo] = {}
    for section, cls in SECTIONS.items():
        found |= {info.name: info for info in _keys_of(cls, section, "")}
    old_keys: list[tuple[str, type[Section]]] = [
        ("", OldSpellings),
        ("datasets.*.", OldDatasetSpellings),
    ]
    for prefix, old in old_keys:
        for key in old.key_names():
            found[f"{prefix}{key}"] = _info(old, "old spellings", prefix, key)
    found["model_config"] = KeyInfo(
        "model_config",
        "old spellings",
        "a mapping",
        None,
        "Now `overrides_of_model_config`.",
        "translated",
    )
    return found


def generic(key: str) -> str:
    """Return the name that `all_keys` has for a key: `test_datasets.0.path` → `datasets.*.path`."""
    parts = ["*" if part.isdigit() else part for part in key.replace("-", "_").split(".")]
    if len(parts) > 1 and parts[0] in ("test_datasets", "pretraining_dataset"):
        parts[0] = "datasets"
    return ".".join(parts)


def find_key(name: str) -> list[KeyInfo]:
    """Return what is known about a key; several for a name that stands in several places.

    Raises:
        ConfigError: there is no such key; the nearest is named.
    """
    keys = all_keys()
    exact = keys.get(generic(name))
    if exact:
        return [exact]
    below = [info for key, info in keys.items() if key.rsplit(".", 1)[-1] == name.replace("-", "_")]
    if below:
        return below
    match = nearest(generic(name), keys) or nearest(name.rsplit(".", 1)[-1], keys)
    hint = f"Did you mean `{match}`?" if match else "`newtune schema --markdown` lists all keys."
    raise ConfigError([Problem(name, "there is no such key", hint)])


def _keys_of(cls: type[Section], section: str, prefix: str) -> Iterator[KeyInfo]:
    for key in cls.key_names():
        yield _info(cls, section, prefix, key)
        below = cls.sections_below().get(key)
        if below and key not in ("test_datasets", "pretraining_dataset"):
            entry = ".*" if isinstance(cls.default(key), tuple) else ""
            yield from _keys_of(below, section, f"{prefix}{key}{entry}.")


def _info(cls: type[Section], section: str, prefix: str, key: str) -> KeyInfo:
    name = f"{prefix}{key}"
    status, reason = _status(cls, name)
    top = name.split(".")[0]
    rules = tuple(rule.says for rule in RULES if top in rule.keys and _concerns(rule.says, name))
    meaning = cls.docs().get(key, "")
    return KeyInfo(
        name, section, describe(cls, key), cls.default(key), meaning, status, reason, rules
    )


def _concerns(sentence: str, name: str) -> bool:
    """Say whether a rule about a top-level key is about this key below it too."""
    return "." not in name or f"`{name.split('.')[-1]}`" in sentence


def _status(cls: type[Section], name: str) -> tuple[Status, str]:
    if cls in (OldSpellings, OldDatasetSpellings):
        return "translated", ""
    if name == "plugins":
        return "no-op", "a plugin is answered by what newtune does itself, or refused by name"
    if name in NO_OPS:
        return "no-op", NO_OPS[name].notice
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        later = why_later(".".join(parts[:length]))
        if later and not later.some_values_act:
            return "refused", later.missing
    for idle in IDLE:
        if idle.acts is never and any(matches(name, pattern) for pattern in idle.keys):
            return "no-op", idle.because
    return "acts", ""
