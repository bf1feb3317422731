"""A corpus of broken files: each is one error with file and place, or counted drops; none hangs."""

import bz2
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from newtune.data.sources import Malformed, Source, open_source
from newtune.errors import DataError

GOOD = b'{"a": 1}\n'
PARQUET = pa.BufferOutputStream()
pa.parquet.write_table(pa.Table.from_pylist([{"a": n} for n in range(1000)]), PARQUET)
WHOLE_PARQUET = PARQUET.getvalue().to_pybytes()
ARROW = pa.BufferOutputStream()
with pa.ipc.new_stream(ARROW, pa.schema({"a": pa.int64()})) as writer:
    writer.write_table(pa.table({"a": list(range(1000))}))
WHOLE_ARROW = ARROW.getvalue().to_pybytes()
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"

# file → (content, what is said); the place is part of it
BROKEN = {
    "truncated.jsonl": (GOOD + b'{"a": "b\n', r"line 2: malformed JSON: .*\(column 7\)"),
    "truncated_last.jsonl": (GOOD * 3 + b'{"a"', r"line 4: malformed JSON: .*\(column 5\)"),
    "truncated.json": (b'[{"a": 1},\n {"a"', r"line 2: malformed JSON"),
    "truncated_object.json": (b'{\n"data": [\n{"a": 1},\n', r"line 4: malformed JSON"),
    "trailing_comma.json": (b'[{"a": 1},\n]', r"line 2: malformed JSON"),
    "no_comma.json": (b'[{"a": 1}\n{"a": 2}]', r"line 2: malformed JSON: Expecting `,` or `\]`"),
    "more_after.json": (b'[{"a": 1}]\n[]', r"line 2: malformed JSON: more follows"),
    "two_documents.json": (b'{\n"a": 1\n}\n{\n"a": 2\n}', r"line 4: malformed JSON: more follows"),
    "two_on_a_line.jsonl": (GOOD + b'{"a": 1} {"a": 2}\n', r"line 2: malformed JSON: more follows"),
    "latin.jsonl": (GOOD + b'{"a": "\xe9"}\n', r"line 2: not UTF-8 at byte 8"),
    "latin.json": (b'[{"a": "\xe9"}]', r"not UTF-8 near byte 9"),
    "latin.csv": (b"a\n\xe9\n", r"row 1: not UTF-8 at byte 1"),
    "latin_header.csv": (b"\xe9\n1\n", r"line 1: not UTF-8 at byte 1"),
    "latin.txt": (b"one\n\xe9\n", r"line 2: not UTF-8 at byte 1"),
    "utf16.jsonl": ('{"a": 1}\n'.encode("utf-16"), r"is UTF-16. Save it as UTF-8"),
    "utf16.csv": ("a\n1\n".encode("utf-16"), r"is UTF-16. Save it as UTF-8"),
    "utf16_bare.txt": ("one\n".encode("utf-16-le"), r"line 1: holds null bytes"),
    "nulls.jsonl": (GOOD + b"\0" * 4096, r"line 2: .*null bytes"),
    "nulls.json": (b'[{"a": 1}' + b"\0" * 4096, r"line 1: .*null bytes"),
    "nulls.csv": (b"a\n1\n\0\0\n", r"row 2: holds null bytes"),
    "list.jsonl": (GOOD + b"[1]\n", r"line 2: a row must be an object, got list"),
    "text.jsonl": (GOOD + b'"a"\n', r"line 2: a row must be an object, got str"),
    "numbers.json": (b"[1, 2]", r"row 1: a row must be an object, got int"),
    "deep.jsonl": (DEEP, r"line 1: nested too deeply"),
    "deep.json": (b"[" + DEEP + b"]", r"line 1: nested too deeply"),
    "twice.jsonl": (GOOD + b'{"a": {"b": 1, "b": 2}}\n', r"line 2: the key `b` occurs twice"),
    "nan.jsonl": (GOOD + b'{"a": NaN}\n', r"line 2: NaN is not a value of JSON"),
    "infinity.jsonl": (b'{"a": -Infinity}\n', r"line 1: -Infinity is not a value"),
    "surrogate.jsonl": (b'{"a": "\\ud83d"}\n', r"line 1: half of a surrogate pair"),
    "ten_megabytes.jsonl": (
        GOOD + b'{"a": "' + b"x" * 10_000_000 + b"\n",
        r"line 2: malformed JSON: Unterminated string",
    ),
    "few_cells.csv": (b"a,b\n1,2\n3\n", r"row 2: has more or fewer cells .*: 1, not 2"),
    "many_cells.csv": (b"a,b\n1,2\n3,4,5\n", r"row 2: has more or fewer cells .*: 3, not 2"),
    "twice.csv": (b"a,b,a\n1,2,3\n", r"line 1: the header names the column `a` twice"),
    "unclosed.csv": (b'a,b\n1,2\n3,"4\n5,6\n', r"row 2: malformed CSV: a quote is never closed"),
    "quotes.csv": (b'a,b\n1,2\n"3"x,4\n', r"row 2: malformed CSV"),
    "empty.jsonl": (b"", r"the file is empty"),
    "blank.jsonl": (b"\n \t\n\r\n", r"holds no rows"),
    "none.json": (b"[]", r"holds no rows"),
    "header.csv": (b"a,b\n", r"holds no rows"),
    "blank.csv": (b"\n\n", r"holds no rows"),
    "half.jsonl.gz": (gzip.compress(GOOD * 100)[:30], r"not a whole gzip file"),
    "half.jsonl.zst": (zstandard.compress(os.urandom(500))[:200], r"not a whole Zstandard file"),
    "half.jsonl.bz2": (bz2.compress(GOOD * 100)[:30], r"not a whole bzip2 file"),
    "half.jsonl.xz": (lzma.compress(GOOD * 100)[:40], r"not a whole xz file"),
    "not.jsonl.gz": (GOOD, r"not a whole gzip file"),
    "not.jsonl.zst": (GOOD * 9, r"not a whole Zstandard file"),
    "flipped.csv.gz": (gzip.compress(b"a\n1\n")[:-8] + b"\0" * 8, r"not a whole gzip file"),
    "no.parquet": (b"PAR?", r"not a Parquet file"),
    "cut.parquet": (WHOLE_PARQUET[:-40], r"not a Parquet file, or cut off"),
    "hole.parquet": (
        WHOLE_PARQUET[:4] + b"\0" * 200 + WHOLE_PARQUET[204:],
        r"rows 1 to 1000: cannot be read",
    ),
    "no.arrow": (b"ARROW?", r"not an Arrow file"),
    "cut.arrow": (WHOLE_ARROW[:2000], r"not an Arrow file, or cut off"),
    "what.bin": (b"x", r"Set `ds_type` to one of arrow, csv"),
}


@pytest.fixture
def read(tmp_path):
    def read(name, **options):
        source = Source(str(tmp_path / name), cache_folder=tmp_path / "cache", **options)
        return [entry for chunk in open_source(source).chunks() for entry in chunk]

    return read


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_error_with_its_place(tmp_path, read, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s){message}") as raised:
        read(name)
    assert name in str(raised.value)
    assert str(raised.value).count("\n") == 0
    assert not list(tmp_path.rglob("*.partial"))


ROW_FAULTS = [
    name
    for name, (_, message) in BROKEN.items()
    if message.startswith(("line", "row"))
    and not name.startswith(("latin_header", "twice.csv", "utf16"))
    and name.endswith((".jsonl", ".csv", ".txt"))
]


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_asked_to_drop_it_marks_just_the_broken_row(tmp_path, read, name):
    (tmp_path / name).write_bytes(BROKEN[name][0])
    rows = [entry.row for entry in read(name, drop_malformed=True)]
    bad = [row for row in rows if isinstance(row, Malformed)]
    assert len(bad) == 1
    assert bad[0].reason
    good = {b'{"a"': {"a": 1}, b"a\n1\n": {"a": "1"}, b"a,b\n": {"a": "1", "b": "2"}}
    for row in rows:
        assert isinstance(row, Malformed) or row in [*good.values(), {"text": "one"}]


UNUSUAL = {
    "bom.jsonl": (b"\xef\xbb\xbf" + GOOD, [{"a": 1}]),
    "bom.json": (b'\xef\xbb\xbf[{"a": 1}]', [{"a": 1}]),
    "bom.csv": (b"\xef\xbb\xbfa\n1\n", [{"a": "1"}]),
    "bom.txt": (b"\xef\xbb\xbfone", [{"text": "one"}]),
    "crlf.jsonl": (b'{"a": 1}\r\n\r\n{"a": 2}\r\n', [{"a": 1}, {"a": 2}]),
    "crlf.csv": (b'a,b\r\n1,"2\r\n3"\r\n', [{"a": "1", "b": "2\r\n3"}]),
    "old_mac.csv": (b"a,b\r1,2\r3,4", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
    "crlf.txt": (b"one\r\n\r\ntwo", [{"text": "one"}, {"text": ""}, {"text": "two"}]),
    "separators.txt": ("one\u2028still\n".encode(), [{"text": "one\u2028still"}]),
    "blank_rows.csv": (b"a\n\n1\n\n", [{"a": "1"}]),
    "quotes.csv": (b'a,b\n"x ""y""",z"z\n', [{"a": 'x "y"', "b": 'z"z'}]),
    "mixed.jsonl": (b'{"a": 1}\n{"b": "x"}\n{"a": [1]}\n', [{"a": 1}, {"b": "x"}, {"a": [1]}]),
    "pretty.json": (b'{\n "a": 1\n}\n', [{"a": 1}]),
    "held.json": (b'{"n": 2, "rows": [\n {"a": 1},\n {"a": "\xc3\xa9"}\n], "x": {}}',
                  [{"a": 1}, {"a": "é"}]),
    "one_row.json": (b'{"a": [1, 2]}', [{"a": [1, 2]}]),
    "two_lists.json": (b'{\n"a": [], "b": [1]\n}', [{"a": [], "b": [1]}]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_are_read(tmp_path, read, monkeypatch, name):
    content, rows = UNUSUAL[name]
    monkeypatch.setattr("newtune.data.sources.json_file.WINDOW", 5)
    monkeypatch.setattr("newtune.data.sources.records.BLOCK", 5)
    (tmp_path / name).write_bytes(content)
    assert [entry.row for entry in read(name)] == rows


def test_a_long_list_is_read_through_small_windows(tmp_path, read, monkeypatch):
    monkeypatch.setattr("newtune.data.sources.json_file.WINDOW", 7)
    rows = [{"n": n, "text": 'é\\"x\U0001f600' * (n % 5), "l": [n, None]} for n in range(50)]
    for name, options in (("a.json", {}), ("b.json", {"indent": 1, "ensure_ascii": False})):
        (tmp_path / name).write_text(json.dumps(rows, **options))
        assert [entry.row for entry in read(name)] == rows


def test_a_fault_in_a_long_list_names_its_line(tmp_path, read, monkeypatch):
    monkeypatch.setattr("newtune.data.sources.json_file.WINDOW", 50)
    lines = [f'{{"n": {n}}}' for n in range(100)]
    lines[70] = '{"n": x}'
    (tmp_path / "rows.json").write_text("[\n" + ",\n".join(lines) + "\n]")
    with pytest.raises(DataError, match=r"rows.json, line 72: malformed JSON: Expecting value"):
        read("rows.json")


def test_a_row_of_ten_megabytes_is_read(tmp_path, read):
    text = "x" * 10_000_000
    (tmp_path / "rows.jsonl").write_text(json.dumps({"a": text}) + "\n" + '{"a": "y"}\n')
    (tmp_path / "rows.json").write_text(json.dumps([{"a": text}, {"a": "y"}]))
    (tmp_path / "rows.csv").write_text(f"a\n{text}\ny\n")
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        assert [len(entry.row["a"]) for entry in read(name)] == [10_000_000, 1]


def test_a_folder_named_like_a_file_is_a_folder(tmp_path, read):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match=r"rows.jsonl: no data file in it"):
        read("rows.jsonl")
    (tmp_path / "rows.jsonl" / "a.jsonl").write_bytes(GOOD)
    assert [entry.row for entry in read("rows.jsonl")] == [{"a": 1}]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path, read):
    (tmp_path / "rows.jsonl").write_bytes(GOOD)
    (tmp_path / "rows.jsonl").chmod(0)
    with pytest.raises(DataError, match=r"rows.jsonl: cannot be read: Permission denied"):
        read("rows.jsonl")


def test_what_cannot_be_opened_says_so(tmp_path, read, monkeypatch):
    (tmp_path / "rows.jsonl").write_bytes(GOOD)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match=r"rows.jsonl: cannot be read: Permission denied"):
        read("rows.jsonl")
