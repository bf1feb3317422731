"""Which tokens are trained, told from the characters that are.

A token is trained when its first character that is not white space is: `" four"`, half outside
the trained characters, is judged by its `f`. A token of white space alone is judged by its first
character; one of no character (a dummy prefix) is not trained.

`trained_by_offsets` reads every token's characters and holds for any tokenizer. Reading them
costs as much as a third of the encoding, so where tokens are known to cover a text without gaps,
in order (`covers_text`), `trained_by_span_ends` asks for the ones at the ends of spans only.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE

from newtune.data.rendered import Rendered, Span

MOST_SPANS = 64
"""Spans of a row up to which their ends are looked up: each look-up walks along the row's tokens,
so that the work for very many would grow with their square."""

_SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)

Ranges = list[tuple[int, int]]


def trained_by_offsets(
    rendered: Sequence[Rendered], encodings: Sequence[Encoding]
) -> NDArray[np.bool_]:
    """Say of each token of the rows, laid end to end, whether it is trained."""
    counts = np.fromiter((len(item) for item in encodings), np.int64, len(encodings))
    offsets = np.fromiter(
        chain.from_iterable(chain.from_iterable(item.offsets for item in encodings)),
        np.int64,
        2 * int(counts.sum()),
    ).reshape(-1, 2)
    text = "".join(row.text for row in rendered)
    sizes = np.array([len(row.text) for row in rendered], dtype=np.int64)
    text_starts = np.cumsum(sizes) - sizes
    if not text:
        return np.zeros(len(offsets), dtype=np.bool_)
    is_trained = _marked(
        len(text),
        [
            (start + span.start, start + span.end)
            for start, row in zip(text_starts.tolist(), rendered, strict=True)
            for span in row.spans
        ],
    )
    begins = np.repeat(text_starts, counts) + offsets[:, 0]
    ends = np.repeat(text_starts, counts) + offsets[:, 1]
    first = _next_solid(text)[np.minimum(begins, len(text) - 1)]
    first = np.where(first < ends, first, np.minimum(begins, len(text) - 1))
    return is_trained[first] & (ends > begins)


def trained_by_span_ends(
    rendered: Sequence[Rendered], encodings: Sequence[Encoding]
) -> NDArray[np.bool_]:
    """Say the same of texts that their tokens cover; a row where they do not is read whole."""
    trained: list[tuple[int, int]] = []
    plain: list[tuple[int, Rendered, Encoding]] = []
    start = 0
    for row, encoding in zip(rendered, encodings, strict=True):
        ranges = _ranges(row, encoding)
        if ranges is None:
            plain.append((start, row, encoding))
        else:
            trained += [(start + first, start + end) for first, end in ranges]
        start += len(encoding)
    is_trained = _marked(start, trained)
    for begin, row, encoding in plain:
        is_trained[begin : begin + len(encoding)] = trained_by_offsets([row], [encoding])
    return is_trained


def covers_text(tokenizer: Tokenizer) -> bool:
    """Say of a tokenizer whether every byte of a text goes into its tokens.

    So it is when it splits text and looks the bytes up: nothing is taken away and nothing put
    in. Unicode composition (NFC) is, but for texts that are composed already (`_ranges` asks).
    """
    normalizers = _parts(_description(tokenizer.normalizer), "normalizers")
    splitters = _parts(_description(tokenizer.pre_tokenizer), "pretokenizers")
    return (
        type(tokenizer.model) is BPE
        and all(part["type"] == "NFC" for part in normalizers)
        and bool(splitters)
        and splitters[-1]["type"] == "ByteLevel"
        and all(_keeps_text(part) for part in splitters)
    )


def _description(component: Any) -> Mapping[str, Any] | None:
    """Return what a tokenizer's JSON says of a component, which is what its pickle holds."""
    return None if component is None else json.loads(component.__getstate__())


def _parts(component: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]]:
    if component is None:
        return ()
    if component["type"] != "Sequence":
        return (component,)
    return [part for inner in component[name] for part in _parts(inner, name)]


def _keeps_text(splitter: Mapping[str, Any]) -> bool:
    if splitter["type"] == "ByteLevel":
        return not splitter.get("add_prefix_space", True)
    return splitter["type"] == "Digits" or (
        splitter["type"] == "Split" and splitter.get("behavior") != "Removed"
    )


def _ranges(row: Rendered, encoding: Encoding) -> Ranges | None:
    """Return the trained tokens of a row as ranges; None where only its offsets can tell."""
    text, count = row.text, len(encoding)
    if len(row.spans) > MOST_SPANS or not (
        text.isascii() or unicodedata.is_normalized("NFC", text)
    ):
        return None
    ranges: Ranges = []
    for span in row.spans:
        first = encoding.char_to_token(span.start)
        end = encoding.char_to_token(span.end) if span.end < len(text) else count
        if first is None or end is None:  # a byte that the vocabulary lacks
            return None
        # the tokens between are the span's; those at its ends may stand half outside
        while first < count and _begin(encoding, first) < span.start:
            if _is_trained(text, span, encoding, first):
                break
            first += 1
        while end < count and _begin(encoding, end) < span.end:
            if not _is_trained(text, span, encoding, end):
                break
            end += 1
        if end > first:
            ranges.append((first, end))
    return ranges


def _begin(encoding: Encoding, token: int) -> int:
    return _characters(encoding, token)[0]


def _is_trained(text: str, span: Span, encoding: Encoding, token: int) -> bool:
    begin, end = _characters(encoding, token)
    solid = next((place for place in range(begin, end) if not text[place].isspace()), begin)
    return span.start <= solid < span.end


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    characters = encoding.token_to_chars(token)
    if characters is None:
        raise IndexError(token)
    return characters


def _marked(size: int, ranges: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return for each of `size` places whether it stands in one of the ranges."""
    edges = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    changes = np.zeros(size + 1, dtype=np.int32)
    np.add.at(changes, edges[:, 0], 1)
    np.add.at(changes, edges[:, 1], -1)
    return np.cumsum(changes[:-1], dtype=np.int32) > 0


def _next_solid(text: str) -> NDArray[np.int64]:
    """For each character: where the next one (itself included) that is not white space stands."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    places = np.where(np.isin(codes, _SPACES), len(text), np.arange(len(text)))
    return np.minimum.accumulate(places[::-1])[::-1]
