"""Rendered text → tokens and labels: whole batches, one pass of the fast tokenizer."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from newtune.data.rendered import Rendered, Tokens
from newtune.data.token_masks import covers_text, trained_by_offsets, trained_by_span_ends
from newtune.types import IGNORE_INDEX

BATCH_CHARACTERS = 2_000_000
"""Characters tokenised at a time: the tokenizer's own notes take some 30 bytes for each."""


class TokenBatch(NamedTuple):
    """Examples laid end to end; `lengths` says where each ends."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    lengths: NDArray[np.int32]

    def trained(self) -> NDArray[np.int64]:
        """Return the number of trained tokens of each example."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        counts = np.concatenate([[0], np.cumsum(self.labels != IGNORE_INDEX)])
        trained: NDArray[np.int64] = counts[ends[1:]] - counts[ends[:-1]]
        return trained

    def keep(self, wanted: NDArray[np.bool_]) -> "TokenBatch":
        """Return the examples that `wanted` marks."""
        if wanted.all():
            return self
        tokens = np.repeat(wanted, self.lengths)
        return TokenBatch(self.input_ids[tokens], self.labels[tokens], self.lengths[wanted])

    def truncate(self, max_tokens: int) -> "TokenBatch":
        """Return the examples cut to `max_tokens` at their end."""
        ends = np.cumsum(self.lengths)
        places = np.arange(len(self.input_ids)) - np.repeat(ends - self.lengths, self.lengths)
        kept = places < max_tokens
        lengths = np.minimum(self.lengths, max_tokens).astype(np.int32)
        return TokenBatch(self.input_ids[kept], self.labels[kept], lengths)

    def cut(self, max_tokens: int) -> tuple["TokenBatch", NDArray[np.int64]]:
        """Cut longer examples into several; return also which example each came from."""
        pieces = np.maximum(1, -(-self.lengths.astype(np.int64) // max_tokens))
        origin = np.repeat(np.arange(len(pieces)), pieces)
        number = np.arange(len(origin)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        lengths = np.minimum(self.lengths[origin] - number * max_tokens, max_tokens)
        labels = self.labels.copy()
        starts = np.cumsum(lengths) - lengths
        labels[starts[lengths > 0]] = IGNORE_INDEX
        return TokenBatch(self.input_ids, labels, lengths.astype(np.int32)), origin


class TextEncoder:
    """A fast tokenizer without its own special tokens; opening and closing ids apart.

    Pickles as its JSON. `bos` are the ids that the tokenizer puts before a text, `eos` the id
    that ends one.
    """

    def __init__(self, backend_json: str, *, bos: Sequence[int], eos: int | None) -> None:
        self.backend_json = backend_json
        self.bos = tuple(bos)
        self.eos = eos

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "TextEncoder":
        """Copy a transformers tokenizer's backend; the original stays as it is."""
        backend = tokenizer.backend_tokenizer
        with_specials = backend.encode("a").ids
        plain = backend.encode("a", add_special_tokens=False).ids
        opening = len(with_specials) - len(plain)
        while opening > 0 and with_specials[opening : opening + len(plain)] != plain:
            opening -= 1
        return cls(backend.to_str(), bos=with_specials[:opening], eos=tokenizer.eos_token_id)

    @cached_property
    def backend(self) -> Tokenizer:
        """The tokenizer, without truncation, padding, or a post-processor (which trims offsets)."""
        tokenizer = Tokenizer.from_str(self.backend_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.post_processor = None
        return tokenizer

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.backend_json, self.bos, self.eos)

    @cached_property
    def covers_text(self) -> bool:
        """Whether tokens cover a text without gaps, so that their masks come cheaper."""
        return covers_text(self.backend)

    def encode(self, rendered: Sequence[Rendered]) -> TokenBatch:
        """Tokenise texts and label their trained characters."""
        return end_to_end([self._encode(batch) for batch in _batches(rendered)])

    def _encode(self, rendered: Sequence[Rendered]) -> TokenBatch:
        encodings = self.backend.encode_batch(
            [row.text for row in rendered], add_special_tokens=False
        )
        counts = np.fromiter((len(item) for item in encodings), np.int64, len(encodings))
        ids = np.fromiter(
            chain.from_iterable(item.ids for item in encodings), np.int32, int(counts.sum())
        )
        masks = trained_by_span_ends if self.covers_text else trained_by_offsets
        return self._with_ends(rendered, counts, ids, masks(rendered, encodings))

    def _with_ends(
        self,
        rendered: Sequence[Rendered],
        counts: NDArray[np.int64],
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
    ) -> TokenBatch:
        """Put opening ids before and the closing id after the rows that ask for them."""
        opens = np.array([len(self.bos) if row.bos else 0 for row in rendered], dtype=np.int64)
        closes = np.array([row.eos != "none" and self.eos is not None for row in rendered])
        lengths = counts + opens + closes
        if not opens.any() and not closes.any():
            return _labelled(ids, trained, lengths)
        starts = np.cumsum(lengths) - lengths
        input_ids = np.empty(int(lengths.sum()), dtype=np.int32)
        is_trained = np.zeros(len(input_ids), dtype=np.bool_)
        shift = np.repeat(starts + opens - (np.cumsum(counts) - counts), counts)
        places = np.arange(len(ids)) + shift
        input_ids[places] = ids
        is_trained[places] = trained
        for number, token in enumerate(self.bos):
            input_ids[starts[opens > 0] + number] = token
        if self.eos is not None:
            ends = (starts + lengths - 1)[closes]
            input_ids[ends] = self.eos
            wishes = np.array([row.eos == "trained" for row in rendered])
            is_trained[ends] = wishes[closes]
        return _labelled(input_ids, is_trained, lengths)


def _labelled(
    input_ids: NDArray[np.int32], is_trained: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> TokenBatch:
    starts = np.cumsum(lengths) - lengths
    is_trained[starts[lengths > 0]] = False  # nothing predicts an example's first token
    labels = np.where(is_trained, input_ids, np.int32(IGNORE_INDEX))
    return TokenBatch(input_ids, labels, lengths.astype(np.int32))


def _restore(backend_json: str, bos: tuple[int, ...], eos: int | None) -> TextEncoder:
    return TextEncoder(backend_json, bos=bos, eos=eos)


def _batches(rendered: Sequence[Rendered]) -> Iterator[Sequence[Rendered]]:
    """Cut rows into runs of about BATCH_CHARACTERS."""
    ends = np.cumsum([len(row.text) for row in rendered])
    start = 0
    while start < len(rendered):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + BATCH_CHARACTERS, side="right"))
        end = max(end, start + 1)
        yield rendered[start:end]
        start = end


def as_batch(rows: Sequence[Tokens]) -> TokenBatch:
    """Lay rows that came as tokens end to end."""
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int32)
    input_ids = np.fromiter(chain.from_iterable(row.input_ids for row in rows), np.int32)
    labels = np.fromiter(chain.from_iterable(row.labels for row in rows), np.int32)
    labels[(np.cumsum(lengths) - lengths)[lengths > 0]] = IGNORE_INDEX
    return TokenBatch(input_ids, labels, lengths)


def end_to_end(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Return the examples of several batches as one."""
    if len(batches) == 1:
        return batches[0]
    empty = np.empty(0, dtype=np.int32)
    columns = zip(*(batches or [TokenBatch(empty, empty, empty)]), strict=True)
    return TokenBatch(*(np.concatenate(column) for column in columns))
