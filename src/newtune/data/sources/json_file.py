"""JSON: one object a line, a list of objects, or one object that holds a list of them."""

import codecs
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from newtune.data.sources.data_file import DataFile
from newtune.data.sources.json_text import parse_object
from newtune.data.sources.records import Index, Records, make_index, scan_lines
from newtune.data.sources.rows import Table
from newtune.errors import DataError

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"
WINDOW = 4 << 20
"""Bytes of a document that are decoded together."""


def open_json(file: DataFile, reopen: tuple[Any, ...]) -> Table:
    """Return the rows of a JSON file of any of the three layouts.

    Raises:
        DataError: a document that is not lines is malformed; its line is named.
    """
    if _is_document(file):
        index = make_index(file, _scan_document, "json-document")
        return Records(file, index, parse_object, unit="row", reopen=reopen)
    index = make_index(file, partial(scan_lines), "lines")
    return Records(file, index, parse_object, unit="line", reopen=reopen)


def _is_document(file: DataFile) -> bool:
    """Tell a list, or an object over many lines, from one object a line."""
    with file.open() as opened:
        line = _first_line(opened)
    if line[:1] == b"[":
        return True
    return line[:1] == b"{" and _goes_on(line) and not file.name.endswith((".jsonl", ".ndjson"))


def _first_line(opened: BinaryIO) -> bytes:
    for line in opened:
        if stripped := line.removeprefix(codecs.BOM_UTF8).strip():
            return stripped
    return b""


def _goes_on(line: bytes) -> bool:
    """Tell whether an object is not at its end where the line ends, and nothing in it is wrong."""
    text = line.decode("utf-8", "replace")
    try:
        _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except RecursionError:
        pass
    return False


class _Window:
    """A stretch of a document's text, and where it stands: bytes from its start, lines from 1."""

    def __init__(self, file: DataFile, opened: BinaryIO) -> None:
        self.name = file.name
        self.opened = opened
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.byte = 0
        self.line = 1
        self.ended = False
        if opened.read(3) == codecs.BOM_UTF8:
            self.byte = 3
        else:
            opened.seek(0)

    def fill(self) -> None:
        """Read on; at least as much again as there is, so that a long value is not read often."""
        rest = self.text[self.at :]
        start = self.opened.tell()
        block = self.opened.read(max(WINDOW, len(rest)))
        self.ended = not block
        try:
            self.text = rest + self.decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name}: not UTF-8 near byte {start + error.start + 1}."
            ) from error
        self.at = 0

    def advance(self, end: int) -> None:
        """Go on to character `end` of the text."""
        piece = self.text[self.at : end]
        self.byte += len(piece) if piece.isascii() else len(piece.encode())
        self.line += piece.count("\n")
        self.at = end

    def next_character(self) -> str:
        """Go to the next character that is not white space and return it; empty at the end."""
        while True:
            end = self.at
            while end < len(self.text) and self.text[end] in _SPACE:
                end += 1
            self.advance(end)
            if end < len(self.text):
                return self.text[end]
            if self.ended:
                return ""
            self.fill()

    def take(self, expected: str) -> str:
        """Go past the next character, which must be one of `expected`."""
        character = self.next_character()
        if not character or character not in expected:
            wanted = " or ".join(f"`{one}`" for one in expected)
            got = f"`{character}`" if character else "the end of the file"
            raise self.error(f"Expecting {wanted}, got {got}", self.line)
        self.advance(self.at + 1)
        return character

    def value(self) -> Any:
        """Go past the next value and return it."""
        self.next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut_off(error):
                    line = self.line + self.text.count("\n", self.at, error.pos)
                    raise self.error(error.msg, line) from error
            except RecursionError as error:
                raise DataError(f"{self.name}, line {self.line}: nested too deeply.") from error
            else:
                if end < len(self.text) or self.ended:
                    self.advance(end)
                    return value
            self.fill()

    def _may_be_cut_off(self, error: json.JSONDecodeError) -> bool:
        # an escape or a literal that the window's end cuts is reported a few characters before it
        return error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16

    def error(self, message: str, line: int) -> DataError:
        """Return a problem of the document on a line."""
        if "\0" in self.text:
            message = "it holds null bytes; was the file written to its end?"
        return DataError(f"{self.name}, line {line}: malformed JSON: {message.rstrip('.')}.")


def _scan_document(file: DataFile) -> Iterator[Index]:
    """Yield where the rows of a list stand; of an object the list in it, if it has just one."""
    with file.open() as opened:
        window = _Window(file, opened)
        start = window.next_character()
        begin = (window.byte, window.line)
        if start == "[":
            index = _scan_list(window)
        else:
            lists = _scan_object(window)
            whole = np.array([[begin[0], window.byte, begin[1]]], np.int64)
            index = lists[0] if len(lists) == 1 else whole
        if window.next_character():
            raise window.error("more follows after the document's end", window.line)
    yield index


def _scan_list(window: _Window) -> Index:
    found: list[tuple[int, int, int]] = []
    blocks: list[Index] = []
    window.take("[")
    if window.next_character() == "]":
        window.take("]")
        return np.empty((0, 3), np.int64)
    while True:
        window.next_character()
        start, line = window.byte, window.line
        window.value()
        found.append((start, window.byte, line))
        if len(found) == 1 << 16:
            blocks.append(np.array(found, np.int64))
            found.clear()
        if window.take(",]") == "]":
            return np.concatenate([*blocks, np.array(found, np.int64).reshape(-1, 3)])


def _scan_object(window: _Window) -> list[Index]:
    lists: list[Index] = []
    window.take("{")
    if window.next_character() == "}":
        window.take("}")
        return lists
    while True:
        if window.next_character() != '"':
            raise window.error("Expecting property name enclosed in double quotes", window.line)
        window.value()
        window.take(":")
        if window.next_character() == "[":
            lists.append(_scan_list(window))
        else:
            window.value()
        if window.take(",}") == "}":
            return lists
