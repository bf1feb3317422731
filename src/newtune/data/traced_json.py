"""JSON of traced values: every character of it is known to be whose it is.

Templates write tool calls, and sometimes whole messages, through `tojson`. A string is encoded
character by character; one that needs no escape keeps its place, an escape belongs whole to the
character it stands for.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from newtune.data.traced import Piece, Traced, claimed, concat, traced

_STAND_IN = re.compile('"\ue000(\\d+)\ue001"')


class JsonMapping(dict[str, Any]):
    """A tool call's arguments: a mapping that a template may also write as text.

    `source` is the JSON they came as, if they did; else they are written as compact as `json`
    does. Templates for mappings use `tojson` or `items`, those for text `+` or a plain output.
    """

    __slots__ = ("source",)
    source: str | None

    def __str__(self) -> str:
        return to_json(self) if self.source is None else self.source

    def __add__(self, other: str) -> str:
        return concat((str(self), other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, str(self))) if isinstance(other, str) else NotImplemented


class WrittenList(list[Any]):
    """A list whose text keeps the memory of what is in it."""

    __slots__ = ()

    def __str__(self) -> str:
        return claimed(list.__repr__(self), self)


class WrittenMapping(dict[str, Any]):
    """A mapping whose text keeps the memory of what is in it."""

    __slots__ = ()

    def __str__(self) -> str:
        return claimed(dict.__repr__(self), self)


def to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates call it so
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON, as transformers' `tojson` writes it, keeping the memory of strings in it."""

    def dump(item: Any) -> str:
        return json.dumps(
            item,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    strings: list[Traced] = []
    replaced = _with_stand_ins(value, strings)
    if not strings:
        return dump(value)
    text = json.dumps(
        replaced,
        ensure_ascii=False,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return _put_back(text, strings, ensure_ascii=ensure_ascii) or dump(value)


def _put_back(text: str, strings: list[Traced], *, ensure_ascii: bool) -> str | None:
    """Return JSON with each stand-in replaced; None when the row's own text looks like one."""
    parts = _STAND_IN.split(text)
    if len(parts) != 2 * len(strings) + 1:
        return None
    known: list[str] = []
    for place, part in enumerate(parts):
        if place % 2:
            known += ['"', _encoded(strings[int(part)], ensure_ascii=ensure_ascii), '"']
        else:
            known.append(_ascii(part) if ensure_ascii else part)
    return concat(known)


def _ascii(text: str) -> str:
    return "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in text)


def _encoded(text: Traced, *, ensure_ascii: bool) -> str:
    """Return a string as it stands between quotes in JSON, with its memory."""
    plain = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]
    if len(plain) == len(text):
        return traced(plain, text._pieces)
    widths = [len(json.dumps(char, ensure_ascii=ensure_ascii)) - 2 for char in str.__str__(text)]
    starts = [0]
    for width in widths:
        starts.append(starts[-1] + width)
    pieces: list[Piece] = []
    for piece in text._pieces:
        if piece.start == piece.end:
            place = starts[piece.start]
            pieces.append(piece._replace(start=place, end=place))
        pieces += _spread(piece, starts)
    return traced(plain, tuple(pieces))


def _spread(piece: Piece, starts: list[int]) -> list[Piece]:
    """Cut a piece where an escape makes one character several; all of an escape is one's."""
    spread: list[Piece] = []
    for index in range(piece.start, piece.end):
        offset = piece.offset + index - piece.start if piece.offset >= 0 else piece.offset
        low, high = starts[index], starts[index + 1]
        last = spread[-1] if spread else None
        follows = last and last.end == low and last.end - last.start == offset - last.offset
        if last and follows and high - low == 1:
            spread[-1] = last._replace(end=high)
            continue
        spread += [Piece(at, at + 1, piece.turn, piece.field, offset) for at in range(low, high)]
    return spread


def _with_stand_ins(value: Any, strings: list[Traced]) -> Any:
    if type(value) is Traced:
        strings.append(value)
        return f"\ue000{len(strings) - 1}\ue001"
    if isinstance(value, Mapping):
        return {key: _with_stand_ins(item, strings) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_stand_ins(item, strings) for item in value]
    return value
