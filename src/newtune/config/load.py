"""A YAML file and the command line → `RunConfig`, or every problem at once with file and line."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from newtune.config.check import build, take_unknown_keys, without_empty
from newtune.config.deepspeed_file import wrong_deepspeed
from newtune.config.idle import idle_keys
from newtune.config.later import refused_keys
from newtune.config.legacy import (
    OLD_KEYS,
    OldDatasetSpellings,
    OldSpellings,
    Translation,
    translate,
)
from newtune.config.noop import keys_that_change_nothing
from newtune.config.overrides import COMMAND_LINE, Override, apply_overrides, parse_overrides
from newtune.config.rules import broken_rules
from newtune.config.run import SECTION_OF, SECTIONS, RunConfig
from newtune.config.section import Section
from newtune.config.yaml_file import Document, KeyPath, read_document
from newtune.errors import ConfigError, Problem

TOP_LEVEL: Mapping[str, type[Section]] = {
    **dict.fromkeys(OLD_KEYS, OldSpellings),
    **{key: SECTIONS[name] for key, name in SECTION_OF.items()},
}
"""Every key that may stand at the top level → its section."""


def load_config(file: Path | str, overrides: Mapping[str, Any] | Sequence[str] = ()) -> RunConfig:
    """Read, translate and check a configuration.

    `overrides` are words of the command line (`["--learning_rate", "1e-4"]`) or values by dotted
    key; they are checked like the file's.

    Raises:
        ConfigError: anything is wrong; it carries every problem, each with its place.
    """
    path = Path(file)
    document = read_document(path)
    given = parse_overrides(overrides, [*SECTIONS.values(), OldSpellings])
    problems = [*document.problems, *_strict_problems(document, given)]
    problems += apply_overrides(document.values, given)
    config, found = _config(document.values, frozenset(str(key[0]) for key, _ in given))
    found += wrong_deepspeed(config.parallel.peek("deepspeed"), path.parent)
    problems += [_located(problem, document, given, path) for problem in found]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or sys.maxsize))
    return replace(config, source=path)


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a flat mapping, checked as a file's would be.

    Raises:
        ConfigError: anything is wrong; problems carry the key, but no line.
    """
    config, problems = _config(_copied(values), frozenset())
    if problems:
        raise ConfigError(problems)
    return config


def _config(
    values: dict[str, Any], from_command_line: frozenset[str]
) -> tuple[RunConfig, list[Problem]]:
    """Return what can be made of the values, and everything that is wrong with them."""
    unknown = take_unknown_keys(values, TOP_LEVEL)
    values = without_empty(values) if values else values
    values = values if isinstance(values, dict) else {}
    problems = _take_wrong_old_spellings(values)
    translation = translate(values, from_command_line)
    problems += translation.problems
    sections: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        mine = {key: value for key, value in values.items() if SECTION_OF.get(key) == name}
        sections[name], wrong = build(cls, mine)
        problems += wrong
    config = RunConfig(**sections)
    wrong_keys = {problem.path.split(".")[0] for problem in problems}
    problems += [*unknown.problems, *broken_rules(config, wrong_keys), *refused_keys(config)]
    harmless = keys_that_change_nothing(config)
    problems += harmless.problems
    idle = idle_keys(config)
    notices = [*unknown.notices, *translation.notices, *harmless.notices, *idle.values()]
    notices += _cautions(config)
    config.forget_reads()
    excused = frozenset({*harmless.keys, *idle, "strict"})  # `strict` has acted already
    written = [replace(item, path=_as_written(item.path, translation)) for item in problems]
    return replace(config, notices=tuple(notices), excused=excused), written


def _cautions(config: RunConfig) -> list[str]:
    """Return what the user should know about settings that do act."""
    model = config.model
    cautions = []
    if model.trust_remote_code and not model.revision_of_model:
        cautions.append(
            f"`trust_remote_code` runs Python code from `{model.base_model}`; "
            "pin what you have reviewed with `revision_of_model`."
        )
    if config.tokenizer.tokenizer_legacy is not None:
        cautions.append(
            "`tokenizer_legacy` is handed to the tokenizer and saved with it; transformers 5 "
            "splits text as the checkpoint's tokenizer.json says."
        )
    return cautions


def _take_wrong_old_spellings(values: dict[str, Any]) -> list[Problem]:
    """Remove old keys whose values have the wrong type, and say so by the name that was used."""
    old = {key: value for key, value in values.items() if key in OldSpellings.key_names()}
    _, problems = build(OldSpellings, old)
    for problem in problems:
        values.pop(problem.path.split(".")[0], None)
    for name in ("datasets", "test_datasets"):
        entries = values.get(name)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict):
                problems += _take_wrong_old_entry_keys(entry, f"{name}.{index}")
    return problems


def _take_wrong_old_entry_keys(entry: dict[str, Any], path: str) -> list[Problem]:
    names = OldDatasetSpellings.key_names()
    old = {key: value for key, value in entry.items() if key in names}
    _, problems = build(OldDatasetSpellings, old)
    for problem in problems:
        entry.pop(problem.path.split(".")[0], None)
    return [replace(problem, path=f"{path}.{problem.path}") for problem in problems]


def _strict_problems(document: Document, overrides: Sequence[Override]) -> list[Problem]:
    """With `strict: true` the command line may change only what the file has."""
    if document.values.get("strict") is not True:
        return []
    return [
        Problem(
            _dotted(path),
            "the file says `strict: true`, and does not have this key",
            "Add the key to the file, or remove `strict`.",
            COMMAND_LINE,
        )
        for path, _ in overrides
        if path not in document.lines
    ]


def _located(
    problem: Problem, document: Document, overrides: Sequence[Override], file: Path
) -> Problem:
    """Give a problem the place of its key, or of the nearest key around it."""
    path = _parts(problem.path)
    if any(path[: len(changed)] == changed for changed, _ in overrides if path):
        return replace(problem, file=COMMAND_LINE)
    lines = [document.lines.get(path[:length]) for length in range(len(path), 0, -1)]
    line = next((line for line in lines if line is not None), None)
    return replace(problem, file=str(file), line=line)


def _as_written(path: str, translation: Translation) -> str:
    """Return today's dotted key in the spelling that the file has."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        old = translation.written_as.get(".".join(parts[:length]))
        if old:
            return ".".join([old, *parts[length:]])
    return path


def _parts(name: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in name.split(".") if part)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _copied(value: Any) -> Any:
    """Return a copy whose mappings and lists may be changed."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
