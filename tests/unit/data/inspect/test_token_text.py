"""What each token says, for tokenizers of several kinds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from newtune.data.inspect.token_text import Fragment, TokenTexts
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS = TokenTexts(TOKENIZER)


@given(st.text())
def test_tokens_laid_end_to_end_are_the_text(text):
    ids = TOKENIZER.encode(text)
    assert "".join(token.text for token in TEXTS.read(ids)) == text


def test_an_emoji_of_four_tokens_is_shown_as_its_bytes():
    tokens = TEXTS.read(TOKENIZER.encode("😀!"))
    assert [token.shown for token in tokens] == ["⟨f0⟩", "⟨9f⟩", "⟨98⟩", "⟨80⟩", "!"]
    assert [token.characters for token in tokens] == ["😀"] * 4 + [""]
    assert [token.text for token in tokens] == ["", "", "", "😀", "!"]
    assert tokens[3].pieces == (Fragment(b"\x80", "😀", last=True),)
    assert tokens[0].hex == "f0"


def test_a_character_cut_off_stays_bytes():
    first, second = TEXTS.read(TOKENIZER.encode("😀")[:2])
    assert (first.shown, first.characters, second.text) == ("⟨f0⟩", "", "")


def test_special_tokens_and_ids_beyond_the_vocabulary():
    start, unknown = TEXTS.read([4, 5000])
    assert (start.text, start.special) == ("<|im_start|>", True)
    assert (unknown.text, unknown.special) == ("⟨id 5000⟩", False)


def test_white_space_is_visible_on_one_line():
    shown = [token.shown for token in TEXTS.read(TOKENIZER.encode(" the\n"))]
    assert "".join(shown) == "␣the⏎"


@pytest.fixture
def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2 has it: `▁` for a space, bytes for what it does not know."""
    vocabulary = {"<unk>": 0, "<s>": 1, "▁Hi": 2, "▁": 3, "é": 4}
    vocabulary |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def test_byte_fallback_and_the_mark_of_a_space(sentencepiece):
    ids = [1, 2, 3, 4, 5 + 0xE2, 5 + 0x80, 5 + 0x9C]
    tokens = TokenTexts(sentencepiece).read(ids)
    assert [token.shown for token in tokens] == [
        "<s>", "␣Hi", "␣", "é", "⟨e2⟩", "⟨80⟩", "⟨9c⟩",
    ]  # fmt: skip
    assert "".join(token.text for token in tokens) == "<s> Hi é“"
