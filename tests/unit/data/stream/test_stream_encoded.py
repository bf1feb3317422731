"""A source of a stream: endless, from any position on, patient with broken lines."""

import pytest

from newtune.data.build import Limits
from newtune.data.stream import encoded
from newtune.data.stream.encoded import EncodedSource
from newtune.data.stream.state import Position
from newtune.errors import DataError
from streams import ListedRows, ids_of, text_reader, text_source, texts, write_texts


def listed(rows=5, **options):
    return ListedRows([{"text": text} for text in texts(rows)], **options)


def take(source, count, position=None):
    position = position or Position()
    taken = []
    for _ in range(count):
        before = position
        row, position = source.take(position)
        taken.append((before, [example.input_ids.tolist() for example in row.examples], row.number))
    return taken


def test_rows_follow_each_other_and_begin_again(tmp_path):
    rows = texts(7)
    source = text_source(write_texts(tmp_path / "a.jsonl", rows), chunk=3)
    expected = [[ids] for ids in ids_of(rows)]
    taken = take(source, 16)
    assert [ids for _, ids, _ in taken] == (expected * 3)[:16]
    assert [number for _, _, number in taken] == ([*range(1, 8)] * 3)[:16]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_any_position_gives_the_same_rows(tmp_path, chunk):
    path = write_texts(tmp_path / "a.jsonl", texts(7))
    whole = take(text_source(path, chunk=3), 20)
    source = text_source(path, chunk=chunk)
    for start in (5, 0, 19, 6, 7, 13, 14):
        position, ids, number = whole[start]
        assert take(source, 1, position)[0][1:] == (ids, number)
    assert take(source, 10, whole[4][0]) == whole[4:14]


def test_long_documents_are_cut_and_counted_by_row(tmp_path):
    rows = texts(6, longest=80)
    source = text_source(write_texts(tmp_path / "a.jsonl", rows), limit=20)
    for (_, pieces, _), ids in zip(take(source, 6), ids_of(rows), strict=True):
        whole = [ids[start : start + 20] for start in range(0, len(ids), 20)]
        assert pieces == [piece for piece in whole if len(piece) > 1]


def test_dropped_and_truncated_rows_are_told(tmp_path):
    rows = [{"text": ""}, {"text": "a b c d e f g"}, {"text": "x y"}]
    source = EncodedSource(ListedRows(rows), text_reader(), Limits(50, min_tokens=5))
    first, position = source.take(Position())
    assert first.drops == [("`text` is empty", "listed, row 1")]
    second, position = source.take(position)
    assert not second.drops
    assert len(second.examples) == 1
    third, _ = source.take(position)
    assert third.drops == [("shorter than 5 tokens", "listed, row 3")]


def test_a_read_that_fails_is_tried_again(caplog):
    waited = []
    with caplog.at_level("INFO", logger="newtune"):
        rows = listed(5, fails=[3, 4])
        source = EncodedSource(rows, text_reader(), Limits(64), chunk=2, pause=waited.append)
        taken = take(source, 5)
    assert taken == take(text_source(listed(5)), 5)
    assert waited == list(encoded.PAUSES[:2])
    assert "listed, after row 2: reading failed (the line is dead); again in 1 s" in caplog.text


def test_what_was_read_before_a_failure_is_not_read_again():
    waited = []
    rows = listed(9, fails=[3, 6, 9])
    source = EncodedSource(rows, text_reader(), Limits(64), chunk=9, pause=waited.append)
    assert take(source, 9) == take(text_source(listed(9)), 9)
    assert waited == [encoded.PAUSES[0]] * 3
    assert rows.reads == 9 + 3


def test_a_source_that_stays_broken_is_named_with_its_place():
    rows = listed(5, fails=range(3, 100))
    source = EncodedSource(rows, text_reader(), Limits(64), chunk=2, pause=lambda seconds: None)
    take(source, 2)
    with pytest.raises(DataError, match=r"listed, after row 2: reading failed 4 times .*--resume"):
        take(source, 1, Position(0, 2))


def test_a_pass_without_a_trained_token_is_not_repeated():
    source = text_source(ListedRows([{"text": ""}, {"text": ""}]))
    with pytest.raises(
        DataError, match="listed: 2 rows in a row gave no trained token; the last, listed, row 2"
    ):
        take(source, 5)


def test_rows_without_end_and_example_stop(monkeypatch):
    monkeypatch.setattr(encoded, "BARREN_ROWS", 3)
    source = text_source(ListedRows([{"text": "a b"}, *({"text": ""} for _ in range(9))]))
    with pytest.raises(DataError, match="3 rows in a row gave no trained token"):
        take(source, 8)


def test_no_rows_at_all_is_an_error():
    with pytest.raises(DataError, match="holds no rows"):
        take(text_source(ListedRows([])), 1)
