"""The page of `newtune data --html`: one file that needs no network, no script and no other file.

Jinja escapes every text, and `safe` takes out what HTML could not hold or show. The page forbids
everything but its own style and script by their hashes, so that a row's text could not run even
if it were not escaped.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from newtune.data.counts import DatasetCounts
from newtune.data.inspect.batches import BatchView, SequenceView
from newtune.data.inspect.rows import TokenView
from newtune.data.inspect.visible import safe

MOST_TOKENS = 20_000
"""Positions on one page, more or less; about 200 bytes each."""


@dataclass(frozen=True)
class Page:
    """What the page shows."""

    title: str
    figures: Sequence[tuple[str, str]]
    """Numbers to see first: (name, value)."""
    choices: Sequence[tuple[str, str]]
    """What the configuration chose: (key, value)."""
    counts: Sequence[DatasetCounts]
    lengths: NDArray[np.int32]
    """Tokens of each example."""
    sequence_len: int
    batches: Sequence[tuple[str, BatchView]]
    """Micro-batches, each with the words that say where in the run it stands."""
    shown: str
    """Which micro-batches these are: `micro-batches 1 to 4 of 75`."""
    unit: str
    """What a sequence holds: `pack` or `example`."""


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram."""

    start: int
    """Shortest length in it, in tokens."""
    end: int
    """Longest length in it."""
    count: int


@dataclass(frozen=True)
class Run:
    """Neighbouring positions of one kind: `trained`, `prompt` or `padding`."""

    start: int
    length: int
    kind: str


def render_page(page: Page) -> str:
    """Return the page as HTML."""
    style, script = _file("page.css"), _file("page.js")
    html: str = (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            bars=histogram(page.lengths),
        )
    )
    return html


def histogram(lengths: NDArray[np.int32], most_bars: int = 40) -> list[Bar]:
    """Count examples by length, in bars of one width: 1, 2 or 5 times a power of ten."""
    if not len(lengths):
        return []
    longest = int(lengths.max())
    width = next(w for w in _round_numbers() if longest // w + 1 <= most_bars)
    counts = np.bincount(lengths // width)
    return [
        Bar(number * width, (number + 1) * width - 1, int(count))
        for number, count in enumerate(counts)
    ]


def _round_numbers() -> Any:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def ticks(top: int, most: int = 6) -> list[int]:
    """Return round numbers from 0 up to at most `top`, for an axis."""
    step = next(number for number in _round_numbers() if top // number <= most)
    return list(range(0, top + 1, step))


def strip(row: SequenceView) -> list[Run]:
    """Return the runs of trained, untrained and padding positions of one sequence."""
    found: list[Run] = []
    for example in row.examples:
        for number, token in enumerate(example.tokens):
            kind = "trained" if token.trained else "prompt" if example.origin else "padding"
            if number and found[-1].kind == kind:
                found[-1] = Run(found[-1].start, found[-1].length + 1, kind)
            else:
                found.append(Run(example.start + number, 1, kind))
    return found


def describe(token: TokenView) -> str:
    """Return what there is to say of a token, in one line."""
    text = token.text
    said = [
        f"“{text.shown}”" + (f", bytes of “{text.characters}”" if text.characters else ""),
        f"id {token.id}",
        f"trained, label {token.label}" if token.trained else f"not trained, label {token.label}",
        f"position {token.position}",
    ]
    said += ["special token"] if text.special else []
    said += [f"turn {token.turn.number}, {token.turn.role}"] if token.turn else []
    return " · ".join(said)


def classes(token: TokenView) -> str:
    """Return a token's CSS classes: `y` trained, `s` special."""
    return "t" + " y" * token.trained + " s" * token.text.special


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("newtune.data.inspect", ""),
        autoescape=True,
        finalize=lambda value: (
            safe(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(describe=describe, classes=classes, strip=strip, ticks=ticks)
    return environment


def _file(name: str) -> str:
    return (files("newtune.data.inspect") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
