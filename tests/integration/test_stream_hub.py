"""Streams of hub datasets, by the real clients and a hub on this machine."""

import io
import json
import logging

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from hub_server import Break
from newtune.config.load import load_config
from newtune.data.stream import encoded
from newtune.errors import DataError
from newtune.prepare import prepare, training_data
from streams import sequences, texts
from tiny import save_tiny_checkpoint

BASE = """
base_model: {folder}/model
datasets:
  - path: someone/rows
    type: completion
{entry}
streaming: true
sequence_len: 96
sample_packing: true
streaming_multipack_buffer_size: 20
micro_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 0.001
max_steps: 12
dataset_prepared_path: {folder}/cache
output_dir: {folder}/out
bf16: false
"""
KINDS = ("jsonl", "parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub-stream")
    save_tiny_checkpoint(folder / "model")
    return folder


def shards(kind, rows):
    """Return the rows in three files, the middle one of a single row."""
    files = {}
    for number, part in enumerate((rows[:25], rows[25:26], rows[26:])):
        name = f"data/train-0000{number}-of-00003.{kind}"
        if kind == "jsonl":
            files[name] = "".join(json.dumps({"text": row}) + "\n" for row in part).encode()
        else:
            sink = io.BytesIO()
            pyarrow.parquet.write_table(pa.table({"text": part}), sink, row_group_size=6)
            files[name] = sink.getvalue()
    return files


def load(folder, *overrides, entry=""):
    (folder / "run.yaml").write_text(BASE.format(folder=folder, entry=entry))
    return prepare(load_config(folder / "run.yaml", list(overrides)))


def walk(prepared, *, state=None, first=0):
    """Return the micro-batches from `first` on as lists, and the place of every step."""
    feed = training_data(prepared)
    try:
        if state is not None:
            feed.train.restore(state)
        found, places = [], {}
        for index in range(first, len(feed.train)):
            batch = feed.train[index]
            found.append({key: torch.as_tensor(value).tolist() for key, value in batch.items()})
            if index % 2 == 0:
                places[index] = json.loads(json.dumps(feed.train.state_at(index)))
    finally:
        feed.close()
    return found, places


def without_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(encoded, "PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_are_those_of_the_same_dataset_prepared(hub, model, kind):
    hub.add("someone/rows", shards(kind, texts(60)), kind="dataset")
    order = ("--sample_packing", "false", "--shuffle_merged_datasets", "false")
    stream = load(model, *order).data
    prepared = load(model, *order, "--streaming", "false").data
    laid = sequences(stream.blocks, len(prepared.train))
    assert [entry.examples[0].input_ids.tolist() for entry in laid] == [
        example.input_ids.tolist() for example in prepared.train
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_is_kept_though_the_dataset_moves_on(hub, model, kind, caplog):
    hub.add("someone/rows", shards(kind, texts(60)), kind="dataset")
    whole, places = walk(load(model))
    hub.add("someone/rows", shards(kind, texts(60, seed=5)), kind="dataset")
    assert walk(load(model))[0] != whole
    for index in (2, 14):
        with caplog.at_level(logging.INFO, logger="newtune"):
            resumed, _ = walk(load(model), state=places[index], first=index)
        assert resumed == whole[index:]
    assert "someone/rows: is at " in caplog.text
    first = places[2]["sources"][0]["commit"]
    assert first == hub.repos["dataset", "someone/rows"].commits[0].id


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_breaks_is_made_again(hub, model, kind, monkeypatch):
    files = shards(kind, texts(60))
    hub.add("someone/rows", files, kind="dataset")
    whole, _ = walk(load(model))
    without_waiting(monkeypatch)
    for number in range(3):
        size = len(files[f"data/train-0000{number}-of-00003.{kind}"])
        path = rf"(resolve|lfs|blob).*0000{number}-of"
        hub.breaks += [Break(path, after=size // 2), Break(path), Break(path, status=503)]
    broken, _ = walk(load(model))
    assert broken == whole


def test_a_connection_that_stays_broken_ends_the_run_with_its_place(hub, model, monkeypatch):
    hub.add("someone/rows", shards("parquet", texts(60)), kind="dataset")
    without_waiting(monkeypatch)
    prepared = load(model)
    hub.breaks.append(Break("(resolve|lfs|blob).*00002-of", status=503, times=1_000_000))
    with pytest.raises(DataError, match=r"someone/rows, after row 26: reading failed 4 times"):
        walk(prepared)


def test_slices_and_skip_are_of_the_split(hub, model):
    hub.add("someone/rows", shards("jsonl", texts(60)), kind="dataset")
    entry = "    split: train[10:40]\n    skip: 3\n    shards: 2\n    shards_idx: 1"
    one_pass = ("--sample_packing", "false", "--streaming_multipack_buffer_size", "13")
    laid = sequences(load(model, *one_pass, entry=entry).data.blocks, 13)
    assert sorted(row for part in laid for _, row in part.origins) == list(range(15, 41, 2))


@pytest.mark.parametrize(
    ("id", "entry", "message"),
    [
        ("someone/others", "", "has no dataset `someone/others`"),
        ("someone/rows", "    revision: v9", "has no revision `v9`"),
        ("someone/rows", "    split: trian", "trian"),
        ("someone/rows", "    split: train[:10%]", "needs the number of rows"),
    ],
)
def test_what_is_not_there_is_said_before_the_run(hub, model, id, entry, message):
    hub.add("someone/rows", shards("jsonl", texts(5)), kind="dataset")
    with pytest.raises(DataError, match=f"{id}: .*{message}"):
        load(model, "--datasets.0.path", id, entry=entry)


def test_a_gated_dataset_says_what_to_do(hub, model):
    hub.add("someone/rows", shards("jsonl", texts(5)), kind="dataset", gated=True)
    with pytest.raises(DataError, match="someone/rows: the dataset `someone/rows` is gated"):
        load(model)


def test_rows_of_a_hub_are_not_found_by_number_but_shown(hub, model):
    from typer.testing import CliRunner

    from newtune.cli.main import app

    hub.add("someone/rows", shards("jsonl", texts(60)), kind="dataset")
    load(model)
    shown = CliRunner().invoke(app, ["data", str(model / "run.yaml")], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "someone/rows, row " in shown.output
    shown = CliRunner().invoke(app, ["data", str(model / "run.yaml"), "--row", "3"])
    assert shown.exit_code == 2
    assert "one after the other" in shown.output
