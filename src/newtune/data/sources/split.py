"""The `split` key: a name, and perhaps a slice of its rows."""

import re
from collections.abc import Callable

from newtune.errors import DataError

_SPLIT = re.compile(r"^(?P<name>[^\[\]]+?)(?:\[(?P<from>-?\d+%?)?:(?P<to>-?\d+%?)?\])?$")


def parse_split(text: str) -> tuple[str, Callable[[int], range]]:
    """Return the split's name and what chooses positions out of so many rows.

    `train`, `train[:500]`, `train[10%:20%]`, `train[-100:]`.

    Raises:
        DataError: the text is none of these.
    """
    match = _SPLIT.match(text.strip())
    if not match:
        raise DataError(f"`split: {text}` is not understood; write `train[:500]` or `train[10%:]`.")
    start, end = match["from"], match["to"]

    def choose(rows: int) -> range:
        return range(rows)[_bound(start, rows) : _bound(end, rows)]

    return match["name"], choose


def _bound(text: str | None, rows: int) -> int | None:
    if text is None:
        return None
    return round(rows * int(text[:-1]) / 100) if text.endswith("%") else int(text)
