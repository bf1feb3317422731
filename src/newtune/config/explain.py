"""Problems and keys in the words of the command line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from newtune.errors import Problem

if TYPE_CHECKING:
    from newtune.config.keys import KeyInfo


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """Return one paragraph a problem: place and key, then what is wrong, then what to do."""
    paragraphs = []
    for problem in problems:
        place = problem.file if problem.line is None else f"{problem.file}:{problem.line}"
        head = ": ".join(part for part in (place, problem.path) if part)
        lines = [f"  {text}" for text in (problem.message, problem.hint) if text]
        paragraphs.append("\n".join([head, *lines] if head else lines))
    return paragraphs


def key_lines(info: "KeyInfo") -> list[tuple[str, str]]:
    """Return (label, text) pairs that describe a key."""
    status = f"{info.status}: {info.reason}" if info.reason else info.status
    pairs = [
        ("key", info.name),
        ("section", info.section),
        ("takes", info.takes),
        ("default", _default(info.default)),
        ("status", status),
        ("meaning", info.meaning),
    ]
    return pairs + [("rule", rule) for rule in info.rules]


def _default(value: Any) -> str:
    if value is None or value == "" or value == ():
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)
