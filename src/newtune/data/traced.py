"""A string that remembers, through what a template does to it, whose its characters are.

A `Traced` is equal to the plain string in every test a template can make, so the text is exactly
what the template writes. What happens to its memory is one of three things:

* kept: slicing, stripping, splitting, joining, replacing, formatting, JSON;
* blurred: the characters are known to be of one field of one message, but not where each of them
  came from (`title`, `center`, `wordwrap`); such a piece has no `offset` (`INEXACT`);
* mixed: several messages went through one such operation; `chat` refuses to train near it.

Never is it lost in silence: an operation that is not known here blurs (`claimed`).
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple, SupportsIndex

INEXACT = -1
"""Offset of a piece whose characters have moved in ways that were not followed."""

MIXED = -1
"""Turn of a piece that several messages went into."""


class Piece(NamedTuple):
    """Characters `start` to `end` are `field` of message `turn`, from character `offset` on.

    A piece may be empty: an empty content still tells where its turn's text would stand.
    """

    start: int
    end: int
    turn: int
    field: str
    offset: int


class Mark(NamedTuple):
    """At this position loop number `loop` reached message `turn` (None: the loop ended)."""

    position: int
    loop: int
    turn: int | None


class Traced(str):
    """A string that remembers which of its characters are whose; equal to the plain string."""

    __slots__ = ("_marks", "_pieces")
    _pieces: tuple[Piece, ...]
    _marks: tuple[Mark, ...]

    @classmethod
    def whole(cls, text: str, turn: int, field: str) -> "Traced":
        """Return `text`, all of it from one field of one message."""
        return traced(text, (_piece((0, len(text), turn, field, 0)),))

    def __str__(self) -> "Traced":
        return self

    def __add__(self, other: str) -> "Traced":
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> "Traced":
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return concat([self] * times.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return claimed(str.__mod__(self, values), self, values)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = str.__getitem__(self, key)
        if isinstance(key, slice):
            start, _, step = key.indices(len(self))
            return self._cut(start, text) if step == 1 else claimed(text, self)
        index = key.__index__()
        return self._cut(index if index >= 0 else index + len(self), text)

    def strip(self, chars: str | None = None, /) -> "Traced":
        """Strip, as `str` does; the memory of what is left stays."""
        return self._cut(len(self) - len(str.lstrip(self, chars)), str.strip(self, chars))

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        """Strip at the start."""
        text = str.lstrip(self, chars)
        return self._cut(len(self) - len(text), text)

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        """Strip at the end."""
        return self._cut(0, str.rstrip(self, chars))

    def removeprefix(self, prefix: str, /) -> "Traced":
        """Cut a prefix off."""
        text = str.removeprefix(self, prefix)
        return self._cut(len(self) - len(text), text)

    def removesuffix(self, suffix: str, /) -> "Traced":
        """Cut a suffix off."""
        return self._cut(0, str.removesuffix(self, suffix))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Split; every part keeps its memory."""
        return self._locate(str.split(self, sep, maxsplit), gap=len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Split from the end."""
        return self._locate(str.rsplit(self, sep, maxsplit), gap=len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:  # noqa: FBT001, FBT002
        """Split at line ends."""
        whole = self._locate(str.splitlines(self, keepends=True))
        lengths = map(len, str.splitlines(self, keepends))
        return [line[:length] for line, length in zip(whole, lengths, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """Split in three at the first `sep`."""
        head, middle, tail = self._locate(str.partition(self, sep))
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """Split in three at the last `sep`."""
        head, middle, tail = self._locate(str.rpartition(self, sep))
        return head, middle, tail

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Replace; the text between the replaced keeps its memory."""
        return replaced(self, old, new, count)

    def join(self, parts: Iterable[str], /) -> str:
        """Join; the parts keep their memory."""
        return join(self, parts)

    def upper(self) -> str:
        """Change case; characters stay in their places unless one becomes two."""
        return self._same_places(str.upper(self))

    def lower(self) -> str:
        """Change case."""
        return self._same_places(str.lower(self))

    def capitalize(self) -> str:
        """Change case."""
        return self._same_places(str.capitalize(self))

    def title(self) -> str:
        """Change case."""
        return self._same_places(str.title(self))

    def swapcase(self) -> str:
        """Change case."""
        return self._same_places(str.swapcase(self))

    def casefold(self) -> str:
        """Change case."""
        return self._same_places(str.casefold(self))

    def _same_places(self, text: str) -> str:
        # case changes never make text shorter, so equal length means that nothing moved
        if len(text) != len(self):
            return claimed(text, self)
        return traced(text, self._pieces, self._marks)

    def _cut(self, start: int, text: str) -> "Traced":
        """Return `text`, which stands at `start` in this string, with its memory."""
        end = start + len(text)
        if end - start == len(self):
            return self
        kept = []
        for piece in self._pieces:
            low, high = max(piece.start, start), min(piece.end, end)
            touches = low < high or (low == high and (start == end or piece.start == piece.end))
            if touches:
                known = piece.offset != INEXACT
                offset = piece.offset + low - piece.start if known else INEXACT
                kept.append(Piece(low - start, high - start, piece.turn, piece.field, offset))
        marks = tuple(
            Mark(min(max(mark.position - start, 0), len(text)), mark.loop, mark.turn)
            for mark in self._marks
        )
        return traced(text, tuple(kept), marks)

    def _locate(self, parts: Iterable[str], gap: int = 0) -> list[str]:
        """Return each of `parts`, which follow each other in this string, with its memory."""
        found: list[str] = []
        cursor = 0
        for part in parts:
            start = str.find(self, part, cursor)
            found.append(self._cut(start, part))
            cursor = start + len(part) + gap
        return found


def traced(text: str, pieces: tuple[Piece, ...], marks: tuple[Mark, ...] = ()) -> Traced:
    """Return `text` with its memory."""
    made = Traced(text)
    made._pieces = pieces
    made._marks = marks
    return made


def pieces_of(text: str) -> tuple[Piece, ...]:
    """Return what is remembered of a string; nothing of a plain one."""
    return text._pieces if type(text) is Traced else ()


def marks_of(text: str) -> tuple[Mark, ...]:
    """Return the loop marks in a string; a plain one has none."""
    return text._marks if type(text) is Traced else ()


def concat(parts: Iterable[str]) -> Traced:
    """Join strings, some of them traced, keeping their memory."""
    texts = list(parts)
    pieces: list[Piece] = []
    marks: list[Mark] = []
    length = 0
    for part in texts:
        if type(part) is Traced:
            for start, end, turn, field, offset in part._pieces:
                pieces.append(_piece((start + length, end + length, turn, field, offset)))
            for at, loop, reached in part._marks:
                marks.append(_mark((at + length, loop, reached)))
        length += len(part)
    return traced("".join(texts), tuple(pieces), tuple(marks))


# tuple's own constructor: half the time of a named tuple's, on the busiest path of all
_piece = partial(tuple.__new__, Piece)
_mark = partial(tuple.__new__, Mark)


def added(parts: tuple[Any, ...]) -> Any:
    """Return `a + b + c`, joined at once when all of them are text."""
    has_memory = False
    for part in parts:
        if type(part) is Traced:
            has_memory = True
        elif type(part) is not str:
            return reduce(operator.add, parts)
    return concat(parts) if has_memory else "".join(parts)


def join(separator: str, parts: Iterable[str]) -> str:
    """Return `separator.join(parts)`, keeping the memory of traced parts."""
    strings = list(parts)
    if not all(isinstance(part, str) for part in strings):
        return str.join(separator, strings)  # raises the error a template would see
    if not separator:
        return concat(strings)
    between = [part for string in strings for part in (separator, string)]
    return concat(between[1:])


def replaced(text: str, old: str, new: str, count: SupportsIndex = -1) -> str:
    """Return `text.replace(old, new, count)`, keeping the memory of `text` and `new`."""
    if not old:
        return claimed(str.replace(text, old, new, count), text, new)
    return join(new, text.split(old, count))


def claimed(text: str, *sources: Any) -> str:
    """Return `text`, made of `sources` in a way nobody followed, with what is known still.

    Of one field of one message: all of it is that field's. Of several: it is mixed.
    """
    owners = {(piece.turn, piece.field) for piece in _pieces_in(sources)}
    if not owners or not text:
        return text
    turn, field = owners.pop() if len(owners) == 1 else (MIXED, "")
    return traced(text, (Piece(0, len(text), turn, field, INEXACT),))


def _pieces_in(value: Any) -> Iterator[Piece]:
    if type(value) is Traced:
        yield from value._pieces
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _pieces_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _pieces_in(item)


_STAND_IN = re.compile("\ue000(\\d+)\ue001")


def through(make: Callable[[Any], str], values: Any) -> str:
    """Return `make(values)`, keeping the memory of the strings in `values`.

    It is made a second time with stand-ins for the strings. When putting these back gives the
    same text, every string's place is known; otherwise (a width cut one) the whole is claimed.
    """
    text = make(values)
    if type(text) is Traced or next(_pieces_in(values), None) is None:
        return text
    strings: list[str] = []
    parts = _STAND_IN.split(make(_with_stand_ins(values, strings)))
    known = [strings[int(part)] if place % 2 else part for place, part in enumerate(parts)]
    rebuilt = concat(known)
    return rebuilt if rebuilt == text else claimed(text, values)


def _with_stand_ins(value: Any, strings: list[str]) -> Any:
    """Return the value with `\ue000N\ue001` for each traced string, which goes to `strings`."""
    if type(value) is Traced:
        strings.append(value)
        return f"\ue000{len(strings) - 1}\ue001"
    if isinstance(value, Mapping):
        return {key: _with_stand_ins(item, strings) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_stand_ins(item, strings) for item in value)
    return value
