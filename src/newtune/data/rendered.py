"""What a format makes of a row: text with its trained characters, before any token."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Eos = Literal["none", "trained", "untrained"]


class Span(NamedTuple):
    """Characters `start` to `end` of a text."""

    start: int
    end: int


class Rendered(NamedTuple):
    """The text of one row; `spans` are its trained characters, in order and apart.

    `bos` asks for the tokenizer's own opening tokens, `eos` for its end-of-sequence token. `turns`
    counts a conversation's trained turns, `ended` those whose end token is trained too.
    """

    text: str
    spans: Sequence[Span]
    bos: bool = False
    eos: Eos = "none"
    turns: int = 0
    ended: int = 0


class Tokens(NamedTuple):
    """A row that came as tokens."""

    input_ids: list[int]
    labels: list[int]


class Drop(NamedTuple):
    """A row that is left out, and why; counted and listed, never silent."""

    reason: str


Outcome = Rendered | Tokens | Drop


def trained_text(*segments: tuple[str, bool]) -> tuple[str, list[Span]]:
    """Join (text, trained) segments into one text and its trained characters."""
    spans: list[Span] = []
    position = 0
    for text, trained in segments:
        end = position + len(text)
        if trained and end > position:
            if spans and spans[-1].end == position:
                spans[-1] = Span(spans[-1].start, end)
            else:
                spans.append(Span(position, end))
        position = end
    return "".join(text for text, _ in segments), spans
