"""Which source the next row comes from."""

from collections.abc import Sequence


def next_source(tokens: Sequence[int], weights: Sequence[float]) -> int:
    """Return the source that is furthest behind its share of the tokens.

    The choice follows from what the sources have given so far, so that it can be made again from
    a checkpoint, and the realised shares are never further from the weights than one row.
    """
    return min(range(len(tokens)), key=lambda source: (tokens[source] / weights[source], source))
