"""Labels by character offset, and what happens at the ends of a text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from newtune.data.rendered import Rendered, Span, Tokens
from newtune.data.tokenize import TextEncoder, TokenBatch, as_batch
from newtune.types import IGNORE_INDEX
from tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.from_tokenizer(tiny_tokenizer())


def words(**options) -> Tokenizer:
    """Return a word tokenizer whose tokens carry the space before them."""
    vocabulary = {"<s>": 0, "</s>": 1, "[UNK]": 2, "▁say": 3, "▁four": 4, "▁now": 5, "▁": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


def test_a_token_across_the_border_is_judged_by_its_first_solid_character():
    encoder = TextEncoder(words().to_str(), bos=(), eos=1)
    text = "say four now"
    border_before_space = encoder.encode([Rendered(text, [Span(3, 8)])])
    border_after_space = encoder.encode([Rendered(text, [Span(4, 8)])])
    half = encoder.encode([Rendered(text, [Span(5, 9)])])
    assert border_before_space.labels.tolist() == [-100, 4, -100]
    assert border_after_space.labels.tolist() == [-100, 4, -100]
    assert half.labels.tolist() == [-100, -100, -100]


def test_opening_and_closing_tokens_stand_where_they_are_asked_for():
    encoder = TextEncoder(words().to_str(), bos=(0,), eos=1)
    batch = encoder.encode(
        [
            Rendered("say four", [Span(4, 8)], bos=True, eos="trained"),
            Rendered("four", [], bos=False, eos="untrained"),
            Rendered("now now", [Span(0, 7)]),
        ]
    )
    assert batch.input_ids.tolist() == [0, 3, 4, 1, 4, 1, 5, 5]
    assert batch.labels.tolist() == [-100, -100, 4, 1, -100, -100, -100, 5]
    assert batch.lengths.tolist() == [4, 2, 2]
    assert batch.trained().tolist() == [2, 0, 1]


def test_opening_tokens_are_read_off_the_tokenizer():
    tokenizer = tiny_tokenizer()
    assert TextEncoder.from_tokenizer(tokenizer).bos == ()
    template = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.backend_tokenizer.post_processor = template
    encoder = TextEncoder.from_tokenizer(tokenizer)
    assert (encoder.bos, encoder.eos) == ((1,), 2)
    batch = encoder.encode([Rendered("hello", [Span(0, 5)], bos=True, eos="trained")])
    assert batch.input_ids.tolist() == tokenizer("hello")["input_ids"]


@given(
    texts=st.lists(
        st.lists(st.tuples(st.text(max_size=8), st.booleans()), max_size=5), min_size=1, max_size=4
    )
)
@settings(max_examples=200, deadline=None)
def test_labels_agree_with_a_plain_loop_over_tokens(encoder, texts):
    rendered = []
    for segments in texts:
        spans, position = [], 0
        for text, trained in segments:
            if trained and text:
                spans.append(Span(position, position + len(text)))
            position += len(text)
        rendered.append(Rendered("".join(text for text, _ in segments), spans))
    batch = encoder.encode(rendered)
    expected = []
    for row in rendered:
        encoding = encoder.backend.encode(row.text, add_special_tokens=False)
        for number, (token, (start, end)) in enumerate(
            zip(encoding.ids, encoding.offsets, strict=True)
        ):
            solid = next((i for i in range(start, end) if not row.text[i].isspace()), start)
            trained = any(span.start <= solid < span.end for span in row.spans)
            expected.append(token if trained and number else IGNORE_INDEX)
    assert batch.labels.tolist() == expected
    assert (
        encoder.encode(rendered[:1]).input_ids.tolist()
        == batch.input_ids[: batch.lengths[0]].tolist()
    )


def test_offsets_count_characters_after_normalisation_too():
    tokenizer = words()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.decoder = decoders.Metaspace()
    encoder = TextEncoder(tokenizer.to_str(), bos=(), eos=None)
    text = "SAY ﬁne FOUR"  # a ligature becomes two characters
    start = text.index("FOUR")
    assert encoder.encode([Rendered(text, [Span(start, start + 4)])]).labels.tolist() == [
        -100,
        -100,
        4,
    ]


BATCH = TokenBatch(
    np.arange(9, dtype=np.int32), np.arange(9, dtype=np.int32), np.array([2, 7], dtype=np.int32)
)


def test_cutting_loses_nothing():
    cut, origin = BATCH.cut(3)
    assert cut.lengths.tolist() == [2, 3, 3, 1]
    assert origin.tolist() == [0, 1, 1, 1]
    assert cut.input_ids.tolist() == list(range(9))
    assert cut.labels.tolist() == [-100, 1, -100, 3, 4, -100, 6, 7, -100]


def test_truncating_and_keeping():
    short = BATCH.truncate(3)
    assert (short.input_ids.tolist(), short.lengths.tolist()) == ([0, 1, 2, 3, 4], [2, 3])
    assert BATCH.keep(np.array([False, True])).input_ids.tolist() == list(range(2, 9))


def test_rows_of_tokens_lie_end_to_end():
    batch = as_batch([Tokens([5, 6], [5, 6]), Tokens([7], [-100])])
    assert (batch.input_ids.tolist(), batch.labels.tolist()) == ([5, 6, 7], [-100, 6, -100])
