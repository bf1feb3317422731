"""Tensors read back: packed, padded, flattened, filler; against what was put in."""

import numpy as np
import pytest

from newtune.data.collate import collate
from newtune.data.inspect.batches import ExampleOrigin, view_batch
from newtune.data.inspect.page import Run, strip
from newtune.data.inspect.token_text import TokenTexts
from newtune.types import IGNORE_INDEX, Example
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PAD = 3


def example(text: str, trained: int) -> Example:
    ids = np.array(TOKENIZER.encode(text), dtype=np.int32)
    labels = ids.copy()
    labels[: len(ids) - trained] = IGNORE_INDEX
    return Example(ids, labels)


EXAMPLES = [example("one, two", 2), example("three", 1), example("four five six", 3)]


def origin(number: int) -> ExampleOrigin:
    return ExampleOrigin(number, 0, number + 1, f"rows, row {number + 1}")


def view(packs: list[list[int]], *, flatten: bool, pad_to: int | None = None):
    batch = collate(
        [[EXAMPLES[number] for number in pack] for pack in packs],
        pad_id=PAD,
        pad_to=pad_to,
        flatten=flatten,
    )
    origins = [[origin(number) for number in pack] for pack in packs]
    texts = TokenTexts(TOKENIZER)
    return view_batch(batch, 0, origins, texts, lambda _dataset, _row, ids: [None] * len(ids))


@pytest.mark.parametrize(
    ("packs", "flatten", "pad_to"),
    [
        ([[0, 1, 2]], True, None),
        ([[0, 1], [2]], True, None),
        ([[2, 0], [1]], False, None),
        ([[0], [1], [2]], False, 64),
        ([[0, 2]], True, 100),
    ],
)
def test_every_example_comes_back_as_it_was_put_in(packs, flatten, pad_to):
    batch = view(packs, flatten=flatten, pad_to=pad_to)
    found = batch.examples
    assert [part.origin.example for part in found] == [n for pack in packs for n in pack]
    assert [part.pack for part in found] == [n for n, pack in enumerate(packs) for _ in pack]
    for part in found:
        given = EXAMPLES[part.origin.example]
        assert [token.id for token in part.tokens] == given.input_ids.tolist()
        assert [token.label for token in part.tokens] == given.labels.tolist()
        assert [token.position for token in part.tokens] == list(range(len(part.tokens)))
    for number, row in enumerate(batch.sequences):
        padding = [part.pack for part in row.examples if part.origin is None]
        assert padding in ([], [len(packs) - 1 if flatten else number])
    tokens = sum(len(EXAMPLES[n].input_ids) for pack in packs for n in pack)
    rows, length = batch.shape
    assert batch.padding == rows * length - tokens
    assert rows == (1 if flatten else len(packs))


def test_padding_and_where_attention_is_cut():
    batch = view([[1]], flatten=True, pad_to=40)
    size = len(EXAMPLES[1].input_ids)
    assert batch.boundaries == [0, size, 40]
    (sequence,) = batch.sequences
    assert sequence.examples[1].origin is None
    assert strip(sequence) == [
        Run(0, size - 1, "prompt"), Run(size - 1, 1, "trained"), Run(size, 40 - size, "padding"),
    ]  # fmt: skip


def test_a_filler_holds_no_example():
    nothing = Example(np.array([PAD, PAD], np.int32), np.array([-100, -100], np.int32))
    batch = collate([[nothing]], pad_id=PAD, pad_to=None, flatten=True)
    texts = TokenTexts(TOKENIZER)
    shown = view_batch(batch, 7, [], texts, lambda _dataset, _row, ids: [None] * len(ids))
    assert (shown.number, shown.examples, shown.trained, shown.padding) == (7, [], 0, 2)
