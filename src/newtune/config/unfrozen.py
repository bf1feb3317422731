"""What a pattern of `unfrozen_parameters` says: a regex, and maybe a range of rows."""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"\[(\d*):(\d*)\]$")


@dataclass(frozen=True)
class Unfrozen:
    """Parameters by a regex that matches their names from the first character, or rows of them."""

    regex: str
    start: int = 0
    stop: int | None = None
    """The first row that stays frozen again; None = trained to the last."""

    @property
    def is_range(self) -> bool:
        """Tell whether rows are named, and not whole parameters."""
        return self.start > 0 or self.stop is not None

    def matches(self, name: str) -> bool:
        """Tell whether the parameter of that name is meant."""
        return re.match(self.regex, name) is not None


def read_pattern(text: str) -> Unfrozen:
    """Return the parts of `^model.embed_tokens.weight$[:32000]`."""
    found = _RANGE.search(text)
    if found is None:
        return Unfrozen(text)
    start, stop = found.groups()
    return Unfrozen(text[: found.start()], int(start or 0), int(stop) if stop else None)
