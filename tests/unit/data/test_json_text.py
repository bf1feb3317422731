"""JSON text → rows: the fast parser against the standard library's, and what neither may lose."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newtune.data.sources.json_text import parse_object
from newtune.data.sources.rows import RowError

TEXTS = st.text(st.sampled_from('ab":\\ \n{},é\u2028\U0001f600'), max_size=6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def read_all_pairs(text):
    """Return the object, and whether any key occurs twice, by the standard library alone."""
    twice = []

    def pairs(found):
        twice.append(len(dict(found)) < len(found))
        return dict(found)

    return json.loads(text, object_pairs_hook=pairs), any(twice)


def written(value, *, ascii_only, space):
    if isinstance(value, dict):
        pairs = list(value.items())
        inner = f"{space},{space}".join(
            json.dumps(key, ensure_ascii=ascii_only)
            + f"{space}:{space}"
            + written(item, ascii_only=ascii_only, space=space)
            for key, item in pairs
        )
        return "{" + inner + "}"
    return json.dumps(value, ensure_ascii=ascii_only)


@given(
    st.lists(st.tuples(TEXTS, VALUES), max_size=4),
    st.booleans(),
    st.sampled_from(["", " ", "  ", "\t"]),
    st.booleans(),
)
def test_every_object_is_as_the_standard_library_reads_it(pairs, ascii_only, space, escaped):
    inner = f"{space},".join(
        json.dumps(key, ensure_ascii=ascii_only)
        + f"{space}:{space}"
        + written(value, ascii_only=ascii_only, space=space)
        for key, value in pairs
    )
    text = "{" + inner + "}"
    if escaped:
        text = re.sub(r"\\.", lambda m: "\\u0022" if m[0] == '\\"' else m[0], text)
    expected, twice = read_all_pairs(text)
    if twice:
        with pytest.raises(RowError, match="occurs twice"):
            parse_object(text.encode())
    else:
        assert parse_object(text.encode()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', r"the key `c` occurs twice"),
        (b'{"a": "\\u0022", "b": 1, "b": 2}', r"the key `b` occurs twice"),
        (b'{"a": NaN}', r"NaN is not a value of JSON"),
        (b'{"a": -Infinity}', r"-Infinity is not a value of JSON"),
        (b'{"a": "\\ud800"}', r"half of a surrogate pair"),
        (b'{"a": 1} {"b": 2}', r"more follows after the row's end \(column 10\)"),
        (b'{"a": 1}\0\0', r"null bytes"),
        (b"[1]", r"a row must be an object, got list"),
        (b'{"a": "\xff"}', r"not UTF-8 at byte 8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", r"nested too deeply"),
    ],
)
def test_what_is_no_row_says_why(text, message):
    with pytest.raises(RowError, match=message):
        parse_object(text)


def test_large_integers_keep_every_digit():
    assert parse_object(b'{"a": 123456789012345678901234567890}') == {
        "a": 123456789012345678901234567890
    }


def test_deep_but_readable_rows_are_read():
    text = '{"a": ' + "[" * 300 + "]" * 300 + "}"
    assert parse_object(text.encode()) == json.loads(text)
