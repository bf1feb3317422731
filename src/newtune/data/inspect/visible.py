"""Text of strangers, made safe to print and its invisible characters visible."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

_HARMFUL = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and newline: escape sequences begin with one
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of what follows
    "\u2028\u2029"  # other ways to end a line
    "\ud800-\udfff"  # halves of characters, which no terminal and no file can take
)
_INVISIBLE = _HARMFUL + (
    "\u00a0\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u2000-\u200f\u202f\u205f-\u206f\u3000\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
_SAFE = re.compile(f"[{_HARMFUL}]")
_PART = re.compile(
    rf"(?P<newline>\n)|(?P<tab>\t)|(?P<space> )|(?P<control>[{_INVISIBLE}])"
    rf"|(?P<text>[^\n\t {_INVISIBLE}]+)"
)

Kind = Literal["text", "space", "newline", "tab", "control", "bytes"]


class Part(NamedTuple):
    """A piece of text of one kind: its exact characters, and how to show them."""

    kind: Kind
    text: str
    """What it is: of `bytes` the character that they complete, or nothing."""
    shown: str

    @property
    def code(self) -> int:
        """The code point of a single character."""
        return ord(self.text)

    @property
    def completed(self) -> str:
        """Its own character, or what stands for it when it is invisible."""
        return "".join(part.shown for part in parts(self.text))


def safe(text: str) -> str:
    r"""Return text that can do nothing to a terminal; newlines and tabs stay.

    What could clear the screen, turn the writing direction or break the encoding becomes a
    picture of itself: `\x1b[2J` is shown as `␛[2J`.
    """
    return _SAFE.sub(lambda match: picture(match[0]), text)


def picture(character: str) -> str:
    """Return what stands for an invisible character: `␛`, `⟨U+202E⟩`."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def parts(text: str) -> Iterator[Part]:
    """Yield a text in pieces, white space and invisible characters by themselves."""
    shown = {"newline": "⏎", "tab": "⇥", "space": " "}
    for match in _PART.finditer(text):
        kind: Kind = match.lastgroup  # type: ignore[assignment]
        piece = match[0]
        yield Part(kind, piece, picture(piece) if kind == "control" else shown.get(kind, piece))


def byte_part(data: bytes, completed: str) -> Part:
    """Return how bytes that are no whole character are shown: `⟨e2 80⟩`.

    `completed` is the character that they complete, if they do.
    """
    return Part("bytes", completed, f"⟨{data.hex(' ')}⟩")
