"""Rows of local files: kinds, folders, splits, and files that are broken."""

import bz2
import gzip
import json
import lzma
import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from newtune.data.sources import Malformed, Source, open_source, parse_split
from newtune.data.sources.open import open_file
from newtune.errors import DataError

ROWS = [{"n": n, "text": f"row {n}"} for n in range(10)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def _work_in(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))  # the cache lies in the working directory


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


def two_frames(compress):
    return compress(LINES[:40].encode()) + compress(LINES[40:].encode())


WRITERS = {
    "rows.jsonl": lambda path: path.write_text(LINES),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "nested.json": lambda path: path.write_text(json.dumps({"data": ROWS}, indent=1)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.encode()),
    "blank.jsonl": lambda path: path.write_text("\n" + LINES.replace("\n", "\n\n")),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "rows.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "rows.jsonl.zst": lambda path: path.write_bytes(two_frames(zstandard.compress)),
    "rows.jsonl.bz2": lambda path: path.write_bytes(two_frames(bz2.compress)),
    "rows.jsonl.xz": lambda path: path.write_bytes(two_frames(lzma.compress)),
    "crlf.jsonl": lambda path: path.write_text(LINES.replace("\n", "\r\n")),
    "no_end.jsonl": lambda path: path.write_text(LINES.rstrip()),
    "pretty.json": lambda path: path.write_text("\n" + json.dumps(ROWS, indent=2) + "\n"),
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
    "stream.arrow": write_arrow_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", WRITERS)
def test_rows_travel_to_another_process_as_paths(tmp_path, name):
    WRITERS[name](tmp_path / name)
    rows = open_source(Source(str(tmp_path / name), split="train[2:7]"))
    sent = pickle.dumps(rows)
    assert b"row 3" not in sent
    open_file.cache_clear()  # as in a process that has not seen the file
    there = pickle.loads(sent)
    assert list(there.chunks(2)) == list(rows.chunks(2))
    assert there.fingerprint == rows.fingerprint
    again = pickle.loads(sent)
    assert again.table is there.table  # a process opens a file once


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text(LINES)
    rows = open_source(Source(str(tmp_path / "rows.jsonl")))
    (tmp_path / "rows.jsonl").write_text(LINES[:30])
    with pytest.raises(DataError, match=r"rows.jsonl: was changed while it was being read"):
        next(rows.chunks())


def test_several_files_are_read_in_runs(tmp_path):
    for name, part in (("a.jsonl", ROWS[:4]), ("b.jsonl", ROWS[4:5]), ("c.jsonl", ROWS[5:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    table = open_source(Source(str(tmp_path))).table
    for start in range(11):
        for step in (1, 2, 3, 7):
            wanted = range(start, 10, step)
            assert list(table.read(wanted)) == [ROWS[n] for n in wanted]


def test_a_large_file_keeps_its_index_beside_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("newtune.data.sources.records.INDEX_KEPT_FROM", 0)
    monkeypatch.setattr("newtune.data.sources.records.BLOCK", 7)
    (tmp_path / "rows.jsonl").write_text("\n \n" + LINES)
    source = Source(str(tmp_path / "rows.jsonl"), cache_folder=tmp_path / "cache")
    rows = open_source(source)
    (entries,) = rows.chunks()
    assert [entry.row for entry in entries] == ROWS
    assert [entry.place.rsplit(" ", 1)[1] for entry in entries] == [str(n) for n in range(3, 13)]
    (index,) = (tmp_path / "cache").glob("*.index")
    open_file.cache_clear()
    made = index.stat().st_mtime_ns
    assert list(open_source(source).chunks()) == [entries]
    assert index.stat().st_mtime_ns == made


def test_parquet_is_read_by_groups_and_large_groups_through_arrow(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    table = open_source(Source(str(path))).table
    for start in range(11):
        for step in (1, 2, 4, 5):
            wanted = range(start, 10, step)
            assert list(table.read(wanted)) == [ROWS[n] for n in wanted]
    monkeypatch.setattr("newtune.data.sources.columnar.LARGEST_GROUP", 0)
    open_file.cache_clear()
    assert read(path, cache_folder=tmp_path / "cache") == ROWS
    assert list((tmp_path / "cache").glob("*.arrow"))


def test_malformed_rows_can_be_dropped(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    rows = open_source(Source(str(tmp_path / "rows.jsonl"), drop_malformed=True))
    (entries,) = rows.chunks()
    assert [entry.row for entry in entries] == [{"a": 1}, {}, {"a": 3}]
    bad = pickle.loads(pickle.dumps(entries[1].row))
    assert isinstance(bad, Malformed)
    assert bad.reason == "malformed JSON: Expecting value (column 7)."


def test_patterns_in_path_and_data_files(tmp_path):
    for name in ("a1.jsonl", "a2.jsonl", "b1.jsonl"):
        (tmp_path / name).write_text(json.dumps({"file": name}) + "\n")
    assert [row["file"] for row in read(tmp_path / "a*.jsonl")] == ["a1.jsonl", "a2.jsonl"]
    files = ("b*.jsonl", "a2.jsonl")
    assert [row["file"] for row in read(tmp_path, data_files=files)] == ["b1.jsonl", "a2.jsonl"]
    named = read("json", data_files=("a?.jsonl",), base_folder=tmp_path)
    assert [row["file"] for row in named] == ["a1.jsonl", "a2.jsonl"]
    with pytest.raises(DataError, match=r"c\*.jsonl: no file matches this pattern"):
        read(tmp_path / "c*.jsonl")


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
    with pytest.raises(DataError, match="split `validation`; it has `test`, `train`"):
        read(tmp_path, split="validation")


def test_splits_go_by_the_names_that_the_hub_knows(tmp_path):
    for name in ("rows.jsonl", "dev.jsonl", "data/eval-0.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"file": name}) + "\n")
    assert [row["file"] for row in read(tmp_path)] == ["rows.jsonl"]
    assert [row["file"] for row in read(tmp_path, split="validation")] == ["dev.jsonl"]
    assert [row["file"] for row in read(tmp_path, split="test")] == ["data/eval-0.jsonl"]
    with pytest.raises(DataError, match="split `other`; it has `test`, `validation`"):
        read(tmp_path, split="other")


def test_names_that_tell_no_split_are_of_every_split(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    for split in ("train", "test", "other"):
        assert read(tmp_path, split=split) == [{"n": 1}]


def test_folders_that_datasets_saved_are_read(tmp_path):
    rows = [{"n": n} for n in range(4)]
    datasets.disable_progress_bars()
    parts = {"train": rows[:3], "test": rows[3:]}
    made = {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    made["train"].save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(made).save_to_disk(tmp_path / "both")
    datasets.enable_progress_bars()
    assert read(tmp_path / "one") == rows[:3]
    assert read(tmp_path / "both") == rows[:3]
    assert read(tmp_path / "both", split="test") == rows[3:]
    with pytest.raises(DataError, match="split `validation`; it has `test`, `train`"):
        read(tmp_path / "both", split="validation")


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
