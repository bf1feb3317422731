"""Which parameters, or which of their rows, a full fine-tuning trains."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from newtune.config.unfrozen import Unfrozen, read_pattern
from newtune.errors import ConfigError, Problem
from newtune.plan.facts import ModelFacts
from newtune.plan.ledger import Ledger

KEY = "unfrozen_parameters"
Rows = tuple[tuple[int, int | None], ...]
"""Ranges of rows, each from its first to before its last; None = to the end."""


def is_unfrozen(name: str, tied_head: str, patterns: Sequence[str]) -> bool:
    """Tell whether a pattern names the parameter, or rows of it.

    `tied_head` is the other name of a tied embedding (`lm_head.weight`), empty when not tied.
    """
    return bool(_meant(name, tied_head, patterns))


def trained_rows(name: str, tied_head: str, patterns: Sequence[str]) -> Rows | None:
    """Return the rows that are trained of a parameter that is unfrozen; None = all of them."""
    found = _meant(name, tied_head, patterns)
    if not all(pattern.is_range for pattern in found):
        return None
    return tuple(sorted({(pattern.start, pattern.stop) for pattern in found}))


def count_rows(rows: Rows, total: int) -> int:
    """Return how many rows of `total` are in at least one of the ranges."""
    return len({row for start, stop in rows for row in range(total)[start:stop]})


def plan_unfrozen(patterns: Sequence[str], facts: ModelFacts, ledger: Ledger) -> tuple[str, ...]:
    """Return the patterns in the names that the model's parameters have.

    Those of the checkpoint's files are translated, with a notice.

    Raises:
        ConfigError: a pattern that matches nothing, or rows that are not there.
    """
    planned, problems = list[str](), list[Problem]()
    for index, text in enumerate(patterns):
        own = [text] if _names(facts, [text]) else _translated(text, facts)
        if own and own != [text]:
            ledger.notice(_translation(text, own))
        planned += own
        path = f"{KEY}.{index}"
        problems += _of_rows(path, own, facts) if own else [_unmatched(path, text, facts)]
    if problems:
        raise ConfigError(problems)
    return tuple(planned)


def tied_head(facts: ModelFacts) -> str:
    """Return the other name of the tied embeddings, empty if they are not tied."""
    return f"{facts.head_name}.weight" if facts.tied_embeddings else ""


def _meant(name: str, head: str, patterns: Sequence[str]) -> list[Unfrozen]:
    names = [name, head] if head and "embed" in name else [name]
    read = map(read_pattern, patterns)
    return [pattern for pattern in read if any(map(pattern.matches, names))]


def _names(facts: ModelFacts, patterns: Sequence[str]) -> list[str]:
    head = tied_head(facts)
    return [name for name in facts.parameter_shapes if is_unfrozen(name, head, patterns)]


def _translated(text: str, facts: ModelFacts) -> list[str]:
    """Return a pattern for each parameter all of whose names in the files are matched."""
    rows = text[len(read_pattern(text).regex) :]
    pattern = read_pattern(text)
    return [
        f"^{re.escape(name)}${rows}"
        for name, stored in facts.stored_names.items()
        if all(map(pattern.matches, stored))
    ]


def _translation(text: str, own: Sequence[str]) -> str:
    plain = [re.sub(r"\\(.)", r"\1", name.strip("^$")) for name in own]
    shown = ", ".join(f"`{name}`" for name in plain[:2])
    more = f" and {len(plain) - 2} more" if len(plain) > 2 else ""
    return f"`{KEY}`: `{text}` is a name of the checkpoint's files; here that is {shown}{more}."


def _unmatched(path: str, text: str, facts: ModelFacts) -> Problem:
    pattern = read_pattern(text)
    stored = {s: name for name, files in facts.stored_names.items() for s in files}
    for part, name in stored.items():
        if pattern.matches(part):
            together = ", ".join(f"`{other}`" for other in facts.stored_names[name])
            message = f"`{text}` matches a part of `{name}`, which holds {together} as one"
            return Problem(path, message, "Match all of them, or give the parameter's own name.")
    # one name stands for the same parameter of all layers, as in the patterns people write
    names = {name: name for name in facts.parameter_shapes} | stored
    families = {re.sub(r"\d+", "0", n): own for n, own in reversed(names.items())}
    wanted = re.sub(r"\[[^\]]*\]\+?|\d+", "0", pattern.regex).replace("\\", "").strip("^$")
    close = get_close_matches(wanted, families, n=4, cutoff=0.4) or list(families)[-6:]
    message = f"`{text}` matches no parameter of this {facts.model_type} model from its first"
    listing = ", ".join(dict.fromkeys(f"`{families[name]}`" for name in close))
    return Problem(path, f"{message} character", f"Closest: {listing}.")


def _of_rows(path: str, own: Sequence[str], facts: ModelFacts) -> Iterator[Problem]:
    pattern = read_pattern(own[0])
    if not pattern.is_range:
        return
    for name in _names(facts, own):
        shape, last = facts.parameter_shapes[name], pattern.stop or pattern.start + 1
        if len(shape) != 2:
            message = f"names rows of `{name}`, which is no matrix: its shape is {list(shape)}"
            yield Problem(path, message, "Leave the range out to train the whole parameter.")
        elif last > shape[0]:
            yield Problem(path, f"reaches row {last}, but `{name}` has {shape[0]}")
