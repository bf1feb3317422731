"""Text of strangers on a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newtune.data.inspect.visible import byte_part, parts, safe

EVERYTHING = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "␛[2J"),
        ("a\r\nb\tc", "a␍\nb\tc"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("half \ud83d", "half ⟨U+D83D⟩"),
        ("\x00\x7f", "␀␡"),
        ("שלום 👨‍👩‍👧 é", "שלום 👨‍👩‍👧 é"),
    ],
)
def test_what_a_terminal_gets(text, shown):
    assert safe(text) == shown


@given(EVERYTHING)
def test_no_control_character_is_left_and_all_can_be_written(text):
    left = [unicodedata.category(character) for character in safe(text) if character not in "\n\t"]
    assert not {"Cc", "Cs", "Zl", "Zp"} & set(left)
    safe(text).encode()


@given(EVERYTHING)
def test_parts_laid_end_to_end_are_the_text(text):
    assert "".join(part.text for part in parts(text)) == text


def test_kinds_of_parts():
    found = [(part.kind, part.shown) for part in parts("a b\n\t\u200d")]
    assert found == [
        ("text", "a"), ("space", " "), ("text", "b"),
        ("newline", "⏎"), ("tab", "⇥"), ("control", "⟨U+200D⟩"),
    ]  # fmt: skip
    assert byte_part(b"\xe2\x80", "").shown == "⟨e2 80⟩"
