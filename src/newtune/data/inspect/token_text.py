"""What each token says: its exact characters, or the bytes it gives to a character.

A byte-level tokenizer may cut an emoji into four tokens. None of them is text by itself; together
they are one character, and each is shown as its bytes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from newtune.data.inspect.visible import Part, byte_part, parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Fragment(NamedTuple):
    """Bytes that are no whole character by themselves."""

    data: bytes
    character: str = ""
    """The character they make together with the neighbours'; empty if they make none."""
    last: bool = False
    """The character is complete with these."""


class TokenText(NamedTuple):
    """One token's text: whole characters, and fragments of others."""

    pieces: tuple[str | Fragment, ...]
    special: bool = False

    @property
    def parts(self) -> list[Part]:
        """The token in pieces that can be shown."""
        shown: list[Part] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                shown += parts(piece)
            else:
                shown.append(byte_part(piece.data, piece.character if piece.last else ""))
        return shown

    @property
    def text(self) -> str:
        """Its characters; a character of several tokens is counted to the last of them."""
        return "".join(part.text for part in self.parts)

    @property
    def shown(self) -> str:
        """The token on one line, nothing invisible in it: `␣four`, `⟨98 80⟩`."""
        return "".join("␣" if part.kind == "space" else part.shown for part in self.parts)

    @property
    def hex(self) -> str:
        """The bytes in it that are no whole character: `e2 80`; empty if there are none."""
        fragments = (piece for piece in self.pieces if isinstance(piece, Fragment))
        return " ".join(fragment.data.hex(" ") for fragment in fragments)

    @property
    def characters(self) -> str:
        """The characters that its fragments are of."""
        return "".join(piece.character for piece in self.pieces if isinstance(piece, Fragment))


class TokenTexts:
    """Reads the tokens of one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer

    def read(self, ids: Sequence[int]) -> list[TokenText]:
        """Return the text of each token of a sequence."""
        data = [self._bytes(token) for token in ids]
        special = [token in self._special for token in ids]
        return [
            TokenText(tuple(_joined(pieces)), flag)
            for pieces, flag in zip(_characters(data), special, strict=True)
        ]

    @cached_property
    def _added(self) -> Mapping[int, str]:
        return {int(i): t.content for i, t in self._tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder.items()
        return frozenset(self._tokenizer.all_special_ids) | {i for i, t in added if t.special}

    @cached_property
    def _decode(self) -> Callable[[str], bytes]:
        backend = self._tokenizer.backend_tokenizer
        steps = list(_steps(json.loads(backend.to_str())["decoder"] or {}))
        if any(step["type"] == "ByteLevel" for step in steps):
            return _byte_level
        falls_back = any(step["type"] == "ByteFallback" for step in steps)
        spaces = [mark for step in steps if (mark := _space_mark(step))]
        return lambda token: _plain(token, spaces, falls_back=falls_back)

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.convert_ids_to_tokens(token)
        # an id beyond the vocabulary has no name
        return self._decode(name) if isinstance(name, str) else f"⟨id {token}⟩".encode()


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder:
        yield decoder


def _space_mark(step: Mapping[str, Any]) -> str | None:
    """Return the character that a decoder turns into a space."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    if step["type"] == "Replace" and step["content"] == " ":
        mark = step["pattern"].get("String")
        return mark if mark is None else str(mark)
    return None


def _plain(token: str, spaces: Iterable[str], *, falls_back: bool) -> bytes:
    if falls_back and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    for mark in spaces:
        token = token.replace(mark, " ")
    return token.encode("utf-8", "replace")


def _byte_level(token: str) -> bytes:
    alphabet = _BYTES
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode("utf-8", "replace")


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's characters for bytes: printable ones are themselves, the rest from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(rest)}


_BYTES = _byte_alphabet()


def _characters(data: Sequence[bytes]) -> list[list[str | Fragment]]:
    """Cut bytes of tokens, laid end to end, into characters; say of each token what it holds."""
    owner = [number for number, part in enumerate(data) for _ in part]
    whole = b"".join(data)
    found: list[list[str | Fragment]] = [[] for _ in data]
    place = 0
    while place < len(whole):
        size, character = _character_at(whole, place)
        owners = owner[place : place + size]
        if character and owners[0] == owners[-1]:
            found[owners[0]].append(character)
        else:
            for token in dict.fromkeys(owners):
                start = place + owners.index(token)
                held = whole[start : start + owners.count(token)]
                found[token].append(Fragment(held, character, token == owners[-1]))
        place += size
    return found


def _character_at(data: bytes, place: int) -> tuple[int, str]:
    """Return the size in bytes of the character at `place`, and itself; a stray byte is none."""
    for size in range(1, 5):
        try:
            return size, data[place : place + size].decode()
        except UnicodeDecodeError:
            continue
    return 1, ""


def _joined(pieces: Iterable[str | Fragment]) -> Iterator[str | Fragment]:
    """Join neighbouring characters, and neighbouring bytes that are of no character."""
    for is_text, group in groupby(pieces, lambda piece: isinstance(piece, str)):
        members = list(group)
        if is_text:
            yield "".join(member for member in members if isinstance(member, str))
            continue
        fragments = [member for member in members if isinstance(member, Fragment)]
        for character, same in groupby(fragments, lambda fragment: fragment.character):
            joined = list(same)
            yield Fragment(b"".join(part.data for part in joined), character, joined[-1].last)
