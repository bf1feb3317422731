"""`--learning_rate 1e-4 --datasets.0.path x`: values from the command line, over the file's."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from newtune.config.section import Section
from newtune.config.yaml_file import EMPTY, KeyPath, parse_value
from newtune.errors import ConfigError, Problem

COMMAND_LINE = "command line"
"""Stands where a problem's file would."""

Override = tuple[KeyPath, Any]


def parse_overrides(
    overrides: Mapping[str, Any] | Sequence[str], sections: Iterable[type[Section]]
) -> list[Override]:
    """Return (path, value) for each override.

    A mapping holds values by dotted key, taken as they are. Words are `--key value`, `--key=value`
    or a bare `--key` (true); one dash works like two, `-` in names like `_`. Values are read as
    YAML, but stay text where the key takes only text.

    Raises:
        ConfigError: a word that belongs to no key.
    """
    sections = tuple(sections)
    if isinstance(overrides, Mapping):
        return [(_path(name), value) for name, value in overrides.items()]
    pairs: list[Override] = []
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not _is_option(word):
            raise ConfigError([_stray(word)])
        name, equals, text = word.lstrip("-").partition("=")
        path = _path(name)
        if equals:
            pairs.append((path, _value(path, text, sections)))
        elif words and not _is_option(words[0]):
            pairs.append((path, _value(path, words.pop(0), sections)))
        else:
            pairs.append((path, True))
    return pairs


def apply_overrides(values: dict[str, Any], overrides: Iterable[Override]) -> list[Problem]:
    """Write the overrides into `values`; return what could not be written."""
    problems = []
    for path, value in overrides:
        message = _write(values, path, value)
        if message:
            problems.append(Problem(".".join(map(str, path)), message, file=COMMAND_LINE))
    return problems


def _is_option(word: str) -> bool:
    """Say whether a word names a key; `-1` and `-` are values."""
    return re.match(r"--?[A-Za-z_]", word) is not None


def _stray(word: str) -> Problem:
    return Problem(
        "",
        f"`{word}` belongs to no key",
        "Write `--key value`; quote a value that holds spaces.",
        COMMAND_LINE,
    )


def _path(name: str) -> KeyPath:
    parts = name.replace("-", "_").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _value(path: KeyPath, text: str, sections: tuple[type[Section], ...]) -> Any:
    return text if text and _takes_only_text(path, sections) else parse_value(text)


def _takes_only_text(path: KeyPath, sections: tuple[type[Section], ...]) -> bool:
    """Say whether the key at `path` is text: `--wandb_name 7` means the text "7"."""
    for key in path:
        if isinstance(key, int):
            continue
        owner = next((cls for cls in sections if key in cls.key_names()), None)
        if owner is None:
            return False
        if key == path[-1]:
            return owner.plain_types(key) <= {str, type(None)}
        below = owner.sections_below().get(key)
        sections = (below,) if below else ()
    return False


def _write(container: Any, path: KeyPath, value: Any) -> str:
    """Set `container[path] = value`, making mappings on the way; return what is wrong, or ""."""
    for position, key in enumerate(path[:-1]):
        below = _item(container, key)
        if below is None or below is EMPTY:
            below = [] if isinstance(path[position + 1], int) else {}
            message = _set(container, key, below)
            if message:
                return message
        elif not isinstance(below, dict | list):
            name = ".".join(map(str, path[: position + 1]))
            return f"`{name}` is {below!r}, which has no keys below it"
        container = below
    return _set(container, path[-1], value)


def _item(container: Any, key: str | int) -> Any:
    if isinstance(container, list):
        return container[key] if isinstance(key, int) and key < len(container) else None
    return container.get(key)


def _set(container: Any, key: str | int, value: Any) -> str:
    if isinstance(container, dict):
        container[key] = value
        return ""
    if not isinstance(key, int):
        return f"`{key}` is no number of a list entry (0 to {len(container)})"
    if key > len(container):
        return f"there is no entry {key}; the next new one is {len(container)}"
    container[key : key + 1] = [value]
    return ""
