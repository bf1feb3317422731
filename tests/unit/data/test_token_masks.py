"""Masks from the ends of spans equal those from every token's characters."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from masks import HOSTILE, SPECIAL
from newtune.data import token_masks
from newtune.data.rendered import Rendered, Span
from newtune.data.token_masks import covers_text, trained_by_offsets, trained_by_span_ends
from tiny import tiny_tokenizer


def merging_across_characters() -> Tokenizer:
    """A byte-level tokenizer whose merges join parts of characters, and these with spaces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    vocabulary = {char: number for number, char in enumerate(alphabet)}
    draw = random.Random(1)
    texts = [*HOSTILE[:-1], " a", "\n\n b", "é é", "👩 x", "ab", "  ", " yes", "שלום "]
    for _ in range(150):
        pieces = [
            ["".join(pair) for pair in [char]]
            for text in draw.sample(texts, 3)
            for char in pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=False
            ).pre_tokenize_str(text)[0][0]
        ]
        place = draw.randrange(len(pieces) - 1)
        left = draw.choice([pieces[place][0], *[a + b for a, b in merges[-3:]]])
        pair = (left, pieces[place + 1][0])
        if "".join(pair) not in vocabulary:
            merges.append(pair)
            vocabulary["".join(pair)] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_special_tokens([AddedToken("<|im_end|>", lstrip=True, rstrip=True)])
    made.add_tokens([AddedToken("yes", single_word=True)])
    return made


def composing() -> Tokenizer:
    made = merging_across_characters()
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return made


def with_bytes_missing() -> Tokenizer:
    state = json.loads(merging_across_characters().to_str())
    for byte in ("Ã", "Ċ"):
        state["model"]["vocab"].pop(byte, None)
    state["model"]["merges"] = []
    return Tokenizer.from_str(json.dumps(state))


def trained_on_little() -> Tokenizer:
    made = tiny_tokenizer().backend_tokenizer
    made.add_special_tokens(list(SPECIAL))
    return made


TOKENIZERS = {
    make.__name__: make()
    for make in (merging_across_characters, composing, with_bytes_missing, trained_on_little)
}


@st.composite
def rows(draw: st.DrawFn) -> Rendered:
    """A hostile text with spans anywhere: side by side, of spaces only, inside one character."""
    # what composes, what decomposes although composed forms are asked for, and what moves
    composed = ("A\u030a", "\u212b", "\u0958", "\ufb2a", "\u1100\u1161", "q\u0307\u0323", "a")
    parts = st.sampled_from((*HOSTILE[:-1], *composed, " ")) | st.text(max_size=4)
    text = "".join(draw(st.lists(parts, max_size=8)))
    borders = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    spans = [Span(*pair) for pair in zip(borders[::2], borders[1::2], strict=False)]
    return Rendered(text, spans)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(batch=st.lists(rows(), max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_ends_of_spans_tell_what_all_offsets_tell(kind, batch):
    tokenizer = TOKENIZERS[kind]
    assert covers_text(tokenizer)
    encodings = tokenizer.encode_batch([row.text for row in batch], add_special_tokens=False)
    expected = trained_by_offsets(batch, encodings)
    assert trained_by_span_ends(batch, encodings).tolist() == expected.tolist()


def test_rows_of_many_spans_are_read_whole(monkeypatch):
    tokenizer = TOKENIZERS["trained_on_little"]
    row = Rendered("a b " * 100, [Span(4 * n, 4 * n + 1) for n in range(100)])
    encodings = tokenizer.encode_batch([row.text])
    whole = trained_by_span_ends([row], encodings)
    monkeypatch.setattr(token_masks, "MOST_SPANS", 1000)
    assert whole.tolist() == trained_by_span_ends([row], encodings).tolist()
    assert whole.sum() == 100


@pytest.mark.parametrize(
    ("normalizer", "splitter"),
    [
        (normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (normalizers.Strip(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
        (None, pre_tokenizers.Whitespace()),
        (None, pre_tokenizers.Metaspace()),
        (None, None),
        (
            None,
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(" ", "removed"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
        (None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit()])),
    ],
)
def test_tokenizers_that_put_in_or_take_away_are_read_by_offsets(normalizer, splitter):
    made = merging_across_characters()
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = splitter or pre_tokenizers.Sequence([])
    assert not covers_text(made)
