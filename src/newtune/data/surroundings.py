"""What a template writes around a turn's own text, and where in it the turn begins and ends.

It is the same few texts in every conversation, so what was worked out once is remembered.
"""

from typing import NamedTuple

MOST_REMEMBERED = 4096
"""Templates have a handful of surroundings, unless they write numbers or times into them."""


class Surroundings(NamedTuple):
    """What a pass wrote before and after the one piece of text in it, and for an answer or not."""

    before: str
    after: str
    is_answer: bool


class Lengths(NamedTuple):
    """Characters from a pass's start to the turn's, and from its text to where its end stands."""

    to_start: int
    to_end: int
    to_after: int


class KnownSurroundings:
    """Surroundings met before; two threads may share it, either then works out the same."""

    def __init__(self) -> None:
        self._known: dict[Surroundings, Lengths] = {}

    def recall(self, around: Surroundings) -> Lengths | None:
        """Return what is known; None for what was not met before."""
        return self._known.get(around)

    def remember(self, around: Surroundings, lengths: Lengths) -> None:
        """Keep what was worked out, unless there are very many already."""
        if len(self._known) < MOST_REMEMBERED:
            self._known[around] = lengths
