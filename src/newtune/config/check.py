"""Plain values → sections, or problems: unknown keys, where they belong, and wrong types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from newtune.config.adapter import LoftqSection, PeftSection
from newtune.config.data import DatasetSection, PromptSection
from newtune.config.kinds import describe, describe_value, literal_choices
from newtune.config.legacy import old_keys_below
from newtune.config.parallel import FsdpSection
from newtune.config.section import Section
from newtune.config.tokenizer import SpecialTokensSection
from newtune.config.yaml_file import EMPTY
from newtune.errors import Problem
from newtune.lookup import did_you_mean, nearest, sentence

PLACES: Mapping[type[Section], str] = {
    DatasetSection: "the dataset entry",
    PromptSection: "the dataset's `type:` mapping",
    FsdpSection: "`fsdp_config:`",
    SpecialTokensSection: "`special_tokens:`",
    PeftSection: "`peft:`",
    LoftqSection: "`peft.loftq_config:`",
}
"""Where a key that stands in the wrong place may belong."""


@dataclass
class Findings:
    """What looking at the values found."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def take_unknown_keys(values: dict[str, Any], top_level: Mapping[str, type[Section]]) -> Findings:
    """Remove keys that do not exist from `values`, at any depth, and say what was meant.

    `top_level` holds the section of each key; the keys of `legacy/` are among them.
    """
    findings = Findings()
    for key in list(values):
        if key not in top_level:
            _unknown(findings, values.pop(key), (), str(key), tuple(top_level), top_level)
            continue
        below = top_level[key].sections_below().get(key)
        if below:
            _walk(findings, values[key], (key,), below, top_level)
    return findings


def without_empty(value: Any) -> Any:
    """Return the value without keys that have none; EMPTY if that leaves nothing of it."""
    if isinstance(value, dict):
        kept = {key: without_empty(item) for key, item in value.items()}
        kept = {key: item for key, item in kept.items() if item is not EMPTY}
        return kept if kept or not value else EMPTY
    if isinstance(value, list):
        return [None if item is EMPTY else without_empty(item) for item in value]
    return value


def build(cls: type[Section], values: Mapping[str, Any]) -> tuple[Section, list[Problem]]:
    """Return the section, and a problem for each key that had to be left out of it."""
    given = _given(cls, values)
    if not given:
        return cls.model_construct(), []
    try:
        return cls.model_validate(given), []
    except ValidationError as error:
        paths = _broken_paths(error, given)
    problems = [_type_problem(cls, path, given) for path in paths]
    broken = {path[0] for path in paths}
    section, _ = build(cls, {key: value for key, value in given.items() if key not in broken})
    return section, problems


def _walk(
    findings: Findings,
    value: Any,
    path: tuple[Any, ...],
    cls: type[Section],
    top_level: Mapping[str, type[Section]],
) -> None:
    """Look for unknown keys in a mapping that should be a `cls`, or a list of them."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _walk(findings, item, (*path, index), cls, top_level)
    if not isinstance(value, dict):
        return
    for key in list(value):
        if key in old_keys_below(cls):
            continue
        if key not in cls.key_names():
            _unknown(findings, value.pop(key), path, str(key), cls.key_names(), top_level)
        elif below := cls.sections_below().get(key):
            _walk(findings, value[key], (*path, key), below, top_level)


def _unknown(
    findings: Findings,
    value: Any,
    path: tuple[Any, ...],
    key: str,
    siblings: Sequence[str],
    top_level: Mapping[str, type[Section]],
) -> None:
    name = ".".join(map(str, (*path, key)))
    place = _belongs(key, path, top_level)
    if place and value is EMPTY:
        findings.notices.append(f"`{name}` is empty and was left out; `{key}` belongs to {place}.")
        return
    hint = f"`{key}` belongs to {place}." if place else _suggestion(key, siblings, top_level)
    findings.problems.append(Problem(name, "unknown key", hint))


def _belongs(key: str, path: tuple[Any, ...], top_level: Mapping[str, type[Section]]) -> str:
    """Return the place of a key that exists elsewhere, or ""."""
    if path and key in top_level:
        owners = {PLACES[cls] for cls in PLACES if key in cls.key_names()}
        inside_type = path[-1] == "type"
        return next(iter(owners)) if inside_type and owners else "the top level of the file"
    return next((place for cls, place in PLACES.items() if key in cls.key_names()), "")


TOKEN_KEYS = frozenset(
    {"hub_token", "hf_token", "token", "auth_token", "use_auth_token", "push_to_hub_token"}
)
"""How other programs name a token; here no key holds one, so that no file of a run does either."""


def _suggestion(key: str, siblings: Sequence[str], top_level: Mapping[str, type[Section]]) -> str:
    if key in TOKEN_KEYS:
        return "A token stands in no file: set HF_TOKEN, or log in with `hf auth login`."
    hint = did_you_mean(key, siblings)
    if hint:
        return hint[0].upper() + hint[1:]
    elsewhere = nearest(key, [*top_level, *(name for cls in PLACES for name in cls.key_names())])
    return f"Did you mean `{elsewhere}`?" if elsewhere else ""


def _given(cls: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given: null, and the "off" of keys that have no such value."""
    given = {}
    for key, value in values.items():
        if value is None or _is_off_form(cls, key, value):
            continue
        below = cls.sections_below().get(key)
        inner = _given_below(below, value) if below else value
        if inner or not below:
            given[key] = inner
    return given


def _given_below(cls: type[Section], value: Any) -> Any:
    if isinstance(value, list):
        return [_given_below(cls, item) for item in value]
    return _given(cls, value) if isinstance(value, dict) else value


def _is_off_form(cls: type[Section], key: str, value: Any) -> bool:
    """Say whether `value` is how people switch off a key that is off by default."""
    if key not in cls.key_names() or cls.default(key) not in (None, ()):
        return False
    if value is False:
        return bool not in cls.plain_types(key) and False not in literal_choices(cls, key)
    return value == "" and cls is not PromptSection


def _broken_paths(error: ValidationError, values: Any) -> list[tuple[Any, ...]]:
    """Return where the wrong values are; of a mapping and a key in it only the key."""
    paths = dict.fromkeys(_path(item["loc"], values) for item in error.errors())
    return [
        path
        for path in paths
        if not any(other != path and other[: len(path)] == path for other in paths)
    ]


def _path(location: tuple[Any, ...], values: Any) -> tuple[Any, ...]:
    """Return the part of pydantic's location that leads through values; the rest names types."""
    path: tuple[Any, ...] = ()
    for key in location:
        is_list = isinstance(values, list | tuple)
        if key in (range(len(values)) if is_list else values if isinstance(values, dict) else ()):
            values = values[key]
            path += (key,)
    return path


def _type_problem(cls: type[Section], path: tuple[Any, ...], values: Any) -> Problem:
    """Describe the wrong value at `path`, by the innermost key that says what it takes."""
    owner, key, got = cls, str(path[0]), values
    section: type[Section] | None = cls
    for part in path:
        got = got[part]
        if isinstance(part, str) and section and part in section.key_names():
            owner, key = section, part
            section = section.sections_below().get(part)
    name = ".".join(map(str, path))
    expected = describe(owner, key)
    if isinstance(path[-1], int) and expected.startswith("a list of "):
        expected = f"one of {expected}"
    message = f"got {describe_value(got)}; expected {expected}"
    return Problem(name, message, _hint(owner, key, got))


def _hint(cls: type[Section], key: str, got: Any) -> str:
    """Return what the user most likely has to do."""
    kinds = cls.plain_types(key)
    if isinstance(got, str):
        return _hint_for_text(kinds, [str(choice) for choice in literal_choices(cls, key)], got)
    if str in kinds and isinstance(got, int | float) and not isinstance(got, bool):
        return f"Put it in quotes: '{got}'."
    if isinstance(got, dict) and describe(cls, key).startswith("a list of mappings"):
        return "A list entry begins with `- `."
    return ""


def _hint_for_text(kinds: set[Any], choices: list[str], got: str) -> str:
    if bool in kinds and got.lower() in ("yes", "no", "on", "off"):
        meant = "true" if got.lower() in ("yes", "on") else "false"
        return f"In YAML 1.2 `{got}` is text; write `{meant}`."
    if kinds & {int, float} and _is_number(got):
        return "Leave the quotes out."
    if choices:
        hint = did_you_mean(got, choices)
        return sentence(hint)
    return f"A list is written `[{got}]`." if str in kinds and Ellipsis in kinds else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
