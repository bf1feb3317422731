"""YAML 1.2 text → plain values, the line of each, and what is wrong with the text.

In YAML 1.2 `no` and `on` are texts and `1e-4` is a number. A mapping's key without a value is kept
as `EMPTY`, which is not the same as an explicit `null`: the first was not given.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from newtune.errors import ConfigError, Problem

Key = str | int
KeyPath = tuple[Key, ...]


class Empty(Enum):
    """The type of `EMPTY`."""

    EMPTY = "empty"

    def __repr__(self) -> str:
        return "(empty)"


EMPTY = Empty.EMPTY
"""The value of `key:` with nothing after it."""


@dataclass
class Document:
    """A YAML file's top-level mapping."""

    values: dict[str, Any]
    lines: dict[KeyPath, int]
    """Path of a key or list entry → line, counted from 1."""
    problems: list[Problem] = field(default_factory=list)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ConfigError: there is no such file, it is not UTF-8, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _stop(path, f"cannot read this file: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _stop(
            path, f"not UTF-8 text (byte {error.start} is {error.object[error.start]:#x})"
        ) from None
    return parse_document(text, path)


def parse_document(text: str, path: Path) -> Document:
    """Read YAML text as `read_document` does; `path` is named in problems."""
    from ruamel.yaml.nodes import MappingNode

    node = _compose(text, path)
    if node is None:
        raise _stop(path, "the file is empty; it needs at least `base_model` and `datasets`")
    if not isinstance(node, MappingNode):
        raise _stop(path, "the top level must be a mapping of keys (`base_model: ...`)", 1)
    reader = _Reader(path)
    values = reader.mapping(node, ())
    return Document(values, reader.lines, reader.problems)


def parse_value(text: str) -> Any:
    """Return the value that `text` has in YAML; text that is no YAML stands for itself."""
    from ruamel.yaml.error import YAMLError

    path = Path()
    try:
        node = _yaml().compose(text)
    except YAMLError:
        return text
    if node is None:
        return EMPTY
    reader = _Reader(path)
    value = reader.value(node, ())
    return text if reader.problems else value


def _yaml() -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True)  # the C reader knows YAML 1.1 only


def _compose(text: str, path: Path) -> Any:
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return _yaml().compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or "cannot be read"
        hint = "Indent with spaces, not tabs." if "\\t" in said else ""
        line = mark.line + 1 if mark else None
        raise _stop(path, f"not valid YAML: {said}", line, hint) from None
    except YAMLError as error:
        raise _stop(path, f"not valid YAML: {str(error).splitlines()[0]}") from None


def _stop(path: Path, message: str, line: int | None = None, hint: str = "") -> ConfigError:
    return ConfigError([Problem("", message, hint, str(path), line)])


_WORDS: Mapping[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda _: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": lambda text: int(text, 10 if text.lstrip("+-").isdigit() else 0),
    "tag:yaml.org,2002:float": lambda text: float(
        text.replace(".inf", "inf").replace(".nan", "nan")
    ),
}
"""How plain scalars become values; every other core tag is text (dates too)."""

_CORE_TAGS = {*_WORDS, *(f"tag:yaml.org,2002:{name}" for name in ("str", "timestamp", "value"))}


class _Reader:
    """Walks the nodes of one document, collecting lines and problems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.open: list[Any] = []

    def value(self, node: Any, path: KeyPath) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode

        if any(node is outer for outer in self.open):
            self.problem(path, node, "this alias stands for a value that contains it")
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.open.append(node)
        is_mapping = isinstance(node, MappingNode)
        value = self.mapping(node, path) if is_mapping else self.sequence(node, path)
        self.open.pop()
        return value

    def sequence(self, node: Any, path: KeyPath) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.lines[*path, index] = item.start_mark.line + 1
            items.append(self.value(item, (*path, index)))
        return items

    def mapping(self, node: Any, path: KeyPath) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged |= self.merge(value_node, path)
                continue
            key = self.value(key_node, path)
            if not isinstance(key, str | int):
                self.problem(path, key_node, f"a key must be text, not {key_node.value!r}")
                continue
            line = key_node.start_mark.line + 1
            if key in values:
                first = self.lines[*path, key]
                self.problem((*path, key), key_node, f"given twice, in lines {first} and {line}")
                continue
            self.lines[*path, key] = line
            values[key] = self.value(value_node, (*path, key))
        return {**merged, **values}

    def merge(self, node: Any, path: KeyPath) -> dict[Any, Any]:
        """Return what `<<: *anchor` brings; of several mappings the first goes before."""
        value = self.value(node, path)
        mappings = value if isinstance(value, list) else [value]
        merged: dict[Any, Any] = {}
        for mapping in mappings:
            if not isinstance(mapping, dict):
                self.problem(path, node, "`<<` takes a mapping")
                continue
            merged = {**mapping, **merged}
        return merged

    def scalar(self, node: Any, path: KeyPath) -> Any:
        if node.tag not in _CORE_TAGS:
            self.problem(path, node, f"the tag `{node.tag}` is not supported; write a plain value")
            return None
        if node.style is None and node.value == "":
            return EMPTY
        convert = _WORDS.get(node.tag)
        return convert(node.value) if convert else node.value

    def problem(self, path: KeyPath, node: Any, message: str) -> None:
        name = ".".join(map(str, path))
        line = node.start_mark.line + 1
        self.problems.append(Problem(name, message, "", str(self.path), line))
