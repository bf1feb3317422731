"""Rows of local files: kinds, folders, splits, and files that are broken."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from newtune.data.sources import Source, open_source, parse_split
from newtune.errors import DataError

ROWS = [{"n": n, "text": f"row {n}"} for n in range(10)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path, **options):
    rows = open_source(Source(str(path), **options))
    return [entry.row for chunk in rows.chunks(3) for entry in chunk]


def write_parquet(path):
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)


def write_arrow(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_arrow_stream(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "rows.jsonl": lambda path: path.write_text(LINES),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "nested.json": lambda path: path.write_text(json.dumps({"data": ROWS}, indent=1)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.encode()),
    "blank.jsonl": lambda path: path.write_text("\n" + LINES.replace("\n", "\n\n")),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
    "stream.arrow": write_arrow_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == ROWS


def test_csv_and_text(tmp_path):
    (tmp_path / "rows.csv").write_text('n,text\n1,"two\nlines"\n')
    (tmp_path / "rows.txt").write_text("first\nsecond\n")
    assert read(tmp_path / "rows.csv") == [{"n": "1", "text": "two\nlines"}]
    assert read(tmp_path / "rows.txt") == [{"text": "first"}, {"text": "second"}]


def test_a_folder_gives_the_files_of_the_split_else_all(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps({"file": name}) + "\n")
    (tmp_path / "README.md").write_text("about")
    assert [row["file"] for row in read(tmp_path)] == ["train-0.jsonl", "train-1.jsonl"]
    assert [row["file"] for row in read(tmp_path, split="test")] == ["test.jsonl"]
    assert [row["file"] for row in read(tmp_path, data_files=("test.jsonl",))] == ["test.jsonl"]
    assert len(read(tmp_path, split="validation")) == 3


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[7:]", range(7, 10)),
        ("train[10%:30%]", range(1, 3)),
        ("train[-2:]", range(8, 10)),
        ("train[:50%]", range(5)),
    ],
)
def test_slices_of_a_split(tmp_path, split, expected):
    (tmp_path / "rows.jsonl").write_text(LINES)
    assert [row["n"] for row in read(tmp_path / "rows.jsonl", split=split)] == list(expected)


def test_shards_are_apart_and_together_everything(tmp_path):
    write_parquet(tmp_path / "rows.parquet")
    shards = [read(tmp_path / "rows.parquet", shards=3, shard=i) for i in range(3)]
    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert sorted(row["n"] for shard in shards for row in shard) == list(range(10))


def test_rows_know_their_line_in_each_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + LINES)
    (tmp_path / "b.jsonl").write_text(LINES)
    rows = open_source(Source(str(tmp_path)))
    entries = [entry for chunk in rows.chunks() for entry in chunk]
    assert entries[0].place.endswith("a.jsonl, line 2")
    assert entries[10].place.endswith("b.jsonl, line 1")
    assert entries[10].number == 11


def test_mixed_schemas_stay_as_they_are(tmp_path):
    rows = [{"a": 1}, {"a": "one", "b": None}, {"a": [1, {"c": None}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "rows.jsonl") == rows


BROKEN = {
    "truncated.jsonl": (b'{"a": 1}\n{"a": "b\n', r"line 2: malformed JSON"),
    "truncated.json": (b'[{"a": 1},\n {"a"', r"line 2: malformed JSON"),
    "latin.jsonl": (b'{"a": 1}\n{"a": "\xe9"}\n', r"line 2: not UTF-8 at byte 8"),
    "latin.csv": (b"a\n\xe9\n", r"not UTF-8 at byte 3"),
    "list.jsonl": (b'{"a": 1}\n[1]\n', r"line 2: a row must be an object, got list"),
    "numbers.json": (b"[1, 2]", r"row 1: a row must be an object, got int"),
    "deep.jsonl": (
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        r"line 1: nested too deep",
    ),
    "ragged.csv": (b"a,b\n1,2\n3\n", r"row 2: has more or fewer cells"),
    "empty.jsonl": (b"", r"the file is empty"),
    "blank.jsonl": (b"\n\n", r"holds no rows"),
    "none.json": (b"[]", r"holds no rows"),
    "half.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 100)[:30], r"not a whole gzip file"),
    "no.parquet": (b"PAR?", r"not a Parquet file"),
    "no.arrow": (b"ARROW?", r"not an Arrow file"),
    "what.bin": (b"x", r"Set `ds_type` to one of arrow, csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_error_with_its_place(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read(tmp_path / name)
    assert name in str(raised.value)


def test_what_is_not_there_is_named_with_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"no such file or folder. Did you mean `train.jsonl`"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"x.jsonl: no such file in"):
        read(tmp_path, data_files=("x.jsonl",))
    with pytest.raises(DataError, match=r"chooses none"):
        read(tmp_path / "train.jsonl", split="train[50:]")
    with pytest.raises(DataError, match=r"is not understood"):
        parse_split("train[a:b]")
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=r"no data file in it"):
        read(tmp_path / "sub")
