"""The configuration reference: JSON Schema for editors, Markdown for people."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from newtune.config.keys import KeyInfo, all_keys
from newtune.config.legacy import OldDatasetSpellings, OldSpellings
from newtune.config.run import SECTIONS
from newtune.config.section import Section

REQUIRED = ("base_model", "datasets", "learning_rate")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the flat YAML."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    sections: tuple[type[Section], ...] = (*SECTIONS.values(), OldSpellings)
    for cls in sections:
        schema = cls.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.get("$defs", {})
        properties |= _properties(cls, schema["properties"])
    for cls in _nested_sections():
        definition = definitions[cls.__name__]
        definition["properties"] = _properties(cls, definition["properties"])
        definition.pop("title", None)
        definition.pop("description", None)
    old = OldDatasetSpellings.model_json_schema()["properties"]
    definitions["DatasetSection"]["properties"] |= _properties(OldDatasetSpellings, old)
    overrides = properties["overrides_of_model_config"]
    properties["model_config"] = {**overrides, "deprecated": True}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "newtune configuration",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": False,
        "$defs": definitions,
    }


def markdown() -> str:
    """Return the reference of all keys as a Markdown page."""
    lines = [
        "# Configuration reference",
        "",
        "Written by `newtune schema --markdown`; a test keeps it equal to the schema.",
        "",
        "A configuration is one flat YAML file (YAML 1.2). Every key stands at the top level,",
        "except those of a list entry or mapping, written here with a dot (`datasets.*.path`).",
        "A key that is left empty is not given. `newtune explain KEY` shows a key in the terminal.",
        "",
        "*acts*: newtune does what it says. *no-op*: accepted with a notice, it changes nothing.",
        "*refused*: known, but not available yet. *translated*: an old spelling.",
    ]
    for section, keys in groupby(all_keys().values(), key=lambda info: info.section):
        lines += ["", f"## {section.capitalize()}", "", *_introduction(section)]
        lines += ["| key | takes | default | meaning | status |", "|---|---|---|---|---|"]
        lines += [_row(info) for info in keys]
    return "\n".join(lines) + "\n"


def _introduction(section: str) -> list[str]:
    cls = SECTIONS.get(section)
    text = (cls or OldSpellings).__doc__ or ""
    return [text.splitlines()[0], ""]


def _row(info: KeyInfo) -> str:
    default = "" if info.default in (None, (), "") else f"`{_yaml(info.default)}`"
    status = f"{info.status}: {info.reason}" if info.reason else info.status
    cells = (f"`{info.name}`", info.takes, default, info.meaning, status)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _properties(cls: type[Section], properties: dict[str, Any]) -> dict[str, Any]:
    """Add descriptions and let every key be left empty."""
    is_old = cls in (OldSpellings, OldDatasetSpellings)
    completed = {}
    for key, schema in properties.items():
        schema.pop("title", None)
        own = [name for name in schema if name in _KINDS]  # in the schema's order, not a set's
        kinds = schema.get("anyOf", [{name: schema.pop(name) for name in own}])
        if {"type": "null"} not in kinds:
            kinds = [*kinds, {"type": "null"}]
        completed[key] = {**schema, "anyOf": kinds, "description": cls.docs()[key]}
        if is_old:
            completed[key]["deprecated"] = True
    return completed


_KINDS = {"type", "enum", "const", "items", "$ref", "additionalProperties"} | {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
}


def _nested_sections() -> Iterator[type[Section]]:
    """Yield every section that stands below a key, once."""
    waiting = list(SECTIONS.values())
    seen: set[type[Section]] = set()
    while waiting:
        for below in waiting.pop().sections_below().values():
            if below not in seen:
                seen.add(below)
                waiting.append(below)
                yield below
