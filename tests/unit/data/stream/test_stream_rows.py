"""Rows of a source from any position on, local or of a hub, are those of the whole reading."""

import json
import tracemalloc
from itertools import islice

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import load_dataset

from newtune.data.sources import Source
from newtune.data.stream.hub import HubRows
from newtune.data.stream.plans import open_rows
from newtune.errors import DataError
from streams import local_rows, write_texts

ROWS = [f"text {number}" for number in range(23)]


def seen(rows):
    return [(row.number, row.row["text"]) for row in rows]


def of_hub(tmp_path, kind, **options):
    """Return rows that `datasets` streams out of three files."""
    files = []
    for number, part in enumerate((ROWS[:9], ROWS[9:10], ROWS[10:])):
        path = tmp_path / f"part-{number}.{kind}"
        if kind == "parquet":
            table = pa.table({"text": part})
            pyarrow.parquet.write_table(table, path, row_group_size=4)
        else:
            write_texts(path, part)
        files.append(str(path))
    kind = "json" if kind == "jsonl" else kind

    def open_dataset(commit):
        return load_dataset(
            kind,
            data_files=files,
            split="train",
            streaming=True,
            cache_dir=str(tmp_path / "cache"),
        )

    return HubRows("hub", open_dataset, commit="abc", **options)


def of_file(tmp_path, kind):
    return local_rows(write_texts(tmp_path / "rows.jsonl", ROWS))


@pytest.mark.parametrize(
    ("make", "kind"), [(of_file, "jsonl"), (of_hub, "jsonl"), (of_hub, "parquet")]
)
def test_reading_goes_on_from_any_position(tmp_path, make, kind):
    source = make(tmp_path, kind)
    whole = seen(source.read(0))
    assert whole == [(number + 1, text) for number, text in enumerate(ROWS)]
    for start in (0, 4, 9, 10, 23):
        assert seen(source.read(start)) == whole[start:]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_anchor_of_the_hub_leads_to_the_rows_after_it(tmp_path, kind):
    source = of_hub(tmp_path, kind)
    anchors = [(row.number, json.loads(json.dumps(source.anchor()))) for row in source.read(0)]
    for number, anchor in (anchors[3], anchors[8], anchors[9], anchors[20]):
        assert anchor["row"] == number
        for start in (number, number + 2):
            assert [row for row, _ in seen(source.read(start, anchor))] == [*range(start + 1, 24)]


def test_a_choice_of_rows_keeps_their_numbers(tmp_path):
    path = write_texts(tmp_path / "rows.jsonl", ROWS)
    local = local_rows(path, split="train[4:12]", skip=2, shards=2, shard=1)
    # rows 5 to 12, the odd ones of them, two left out
    assert [number for number, _ in seen(local.read(0))] == [10, 12]
    assert [number for number, _ in seen(local.read(10))] == [12]
    hub = of_hub(tmp_path, "jsonl", chosen=range(7, 12, 2))
    assert [number for number, _ in seen(hub.read(0))] == [8, 10, 12]
    assert [number for number, _ in seen(hub.read(9))] == [10, 12]


def test_what_a_stream_cannot_choose_is_refused(tmp_path):
    path = write_texts(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match="choose none of its rows"):
        open_rows(Source(str(path), cache_folder=tmp_path), skip=23)
    with pytest.raises(DataError, match="needs the number of rows"):
        open_rows(Source("someone/rows", split="train[:10%]"))
    with pytest.raises(DataError, match="needs the number of rows"):
        open_rows(Source("someone/rows", split="train[-5:]"))


def test_hub_rows_are_chosen_without_knowing_how_many_there_are(monkeypatch):
    monkeypatch.setattr("newtune.data.stream.plans.commit_of", lambda source: "abc")
    rows = open_rows(Source("someone/rows", split="train[100:200]", shards=4, shard=1), skip=10)
    assert isinstance(rows, HubRows)
    assert rows.chosen == range(111, 200, 4)


def test_200_000_rows_take_little_memory(tmp_path):
    path = write_texts(tmp_path / "rows.jsonl", [f"row {number}" for number in range(200_000)])
    source = local_rows(path)
    tracemalloc.start()
    count = sum(1 for _ in islice(source.read(150_000), 40_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40_000
    assert peak < 4 << 20
