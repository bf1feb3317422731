"""Choose from a table by name, and suggest the nearest name when there is none."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to `name`, or None when nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in sorted(known)}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean `x`?" or an empty string."""
    match = nearest(name, known)
    return f"did you mean `{match}`?" if match else ""


def sentence(text: str) -> str:
    """Return the text with a capital at its start."""
    return text[:1].upper() + text[1:]


def choose(table: Mapping[str, Value], name: str) -> Value:
    """Return `table[name]`.

    Raises:
        KeyError: no such name; the message names the nearest and lists all. The caller turns it
            into the error of its domain.
    """
    if name in table:
        return table[name]
    hint = did_you_mean(name, table)
    known = ", ".join(sorted(table))
    raise KeyError(f"unknown name `{name}`; {hint + ' ' if hint else ''}known: {known}")
