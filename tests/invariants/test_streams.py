"""A stream trains what the same rows would train prepared: tokens, masks, counts, what is dropped.

And it does so from any place of a checkpoint on, whatever kind of file the place lies in.
"""

import gzip
import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet
import pytest

from newtune.config.load import load_config
from newtune.data.stream.state import StreamState
from newtune.prepare import prepare
from streams import WORDS, sequences, texts
from tiny import save_tiny_checkpoint

BASE = """
base_model: {folder}/model
datasets:
  - path: {folder}/{name}
{entry}
shuffle_merged_datasets: false
sequence_len: 128
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 0.001
dataset_prepared_path: {folder}/cache
output_dir: {folder}/out
bf16: false
"""


def talks(count):
    """Return conversations, some of them empty, too long, or without an answer."""
    rows = []
    for number, text in enumerate(texts(count, seed=8)):
        answers = [None, "", text, text * 20, f"<think>{text}</think> {WORDS[number % 9]}"]
        turns = []
        for turn in range(number % 4):
            turns += [
                {"role": "user", "content": f"{turn} {text}"},
                {"role": "assistant", "content": answers[(number + turn) % 5]},
            ]
        rows.append({"messages": turns})
    return rows


def instructions(count):
    return [
        {"instruction": text, "output": None if number % 7 == 3 else text[::-1] * (number % 5)}
        for number, text in enumerate(texts(count, seed=9))
    ]


def segments(count):
    return [
        {"segments": [{"text": word, "label": place % 2 == 0} for place, word in enumerate(words)]}
        for words in (text.split() for text in texts(count, seed=10))
    ]


CASES = {
    "chat": (talks, "type: chat_template\n    chat_template: chatml"),
    "chat with inputs": (
        talks,
        "type: chat_template\n    chat_template: qwen3\n    train_on_inputs: true\n"
        "    split_thinking: true",
    ),
    "instructions": (instructions, "type: alpaca"),
    "segments": (segments, "type: input_output"),
    "text": (lambda count: [{"text": t * 9} for t in texts(count)], "type: completion"),
    "short text": (lambda count: [{"text": t} for t in texts(count)], "type: completion"),
    "own function": (
        lambda count: [{"a": t} for t in texts(count)],
        "type: rows_of_mine.read",
    ),
}
STREAMING = ("--streaming", "true", "--max_steps", "5", "--streaming_multipack_buffer_size")
FORMS = ("jsonl", "jsonl.gz", "parquet")


def write(folder, name, rows, form):
    path = folder / f"{name.replace(' ', '_')}.{form}"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if form == "jsonl":
        path.write_text(lines)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    save_tiny_checkpoint(folder / "model")
    (folder / "rows_of_mine.py").write_text(
        "def read(row):\n"
        "    words = row['a'].split()\n"
        "    return [(word, place % 2 == 1) for place, word in enumerate(words)]\n"
    )
    return folder


def load(folder, name, form, *overrides):
    make, entry = CASES[name]
    entry = entry.replace("rows_of_mine.read", "rows_of_mine:read")
    file = write(folder, name, make(60), form)
    path = folder / f"{file}.yaml"
    path.write_text(BASE.format(folder=folder, name=file, entry=f"    {entry}"))
    return prepare(load_config(path, list(overrides))).data


def plain(examples):
    return [(example.input_ids.tolist(), example.labels.tolist()) for example in examples]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_the_prepared_data_in_its_order(folder, name, form):
    prepared = load(folder, name, form)
    store, count = prepared.train, len(prepared.train)
    stream = load(folder, name, form, *STREAMING, str(count))
    laid = sequences(stream.blocks, count)
    assert plain(entry.examples[0] for entry in laid) == plain(store[n] for n in range(count))
    assert [row for entry in laid for _, row in entry.origins] == store.origins()[1].tolist()


@pytest.mark.parametrize("name", CASES)
def test_a_stream_counts_what_prepared_data_counts(folder, name):
    prepared = load(folder, name, "jsonl")
    blocks = load(folder, name, "jsonl", *STREAMING, str(len(prepared.train))).blocks
    counts = blocks.read(StreamState.beginning(1)).end.counts[0].as_counts(prepared.counts[0].name)
    expected, counted = asdict(prepared.counts[0]), asdict(counts)
    last = max(prepared.train.origins()[1].tolist())
    after = [
        place
        for reason in expected["dropped"]
        for place in reason["examples"]
        if int(place.rsplit(" ", 1)[1]) > last
    ]
    for key in ("examples", "tokens", "trained_tokens", "rows_cut", "rows_truncated"):
        assert counted[key] == expected[key], key
    assert counts.rows_read == last
    assert counts.rows_dropped == prepared.counts[0].rows_dropped - len(after)
    for reason in counted["dropped"]:
        same = next(entry for entry in expected["dropped"] if entry["reason"] == reason["reason"])
        assert reason["first_row"] == same["first_row"]
        assert list(reason["examples"]) == list(same["examples"])[: len(reason["examples"])]


@pytest.mark.parametrize("form", FORMS)
def test_reading_goes_on_in_the_middle_of_a_file(folder, form):
    options = (*STREAMING, "7", "--sample_packing", "true", "--shuffle_merged_datasets", "true")
    whole = load(folder, "short text", form, *options).blocks
    block, places, found = whole.read(StreamState.beginning(1)), [], []
    for _ in range(20):  # more than two passes
        places.append(json.loads(json.dumps(block.start.as_json())))
        found.append([plain(entry.examples) for entry in block.sequences])
        block = whole.read(block.end)
    for number in (3, 19, 8, 9):
        again = load(folder, "short text", form, *options).blocks
        block = again.read(StreamState.from_json(places[number]))
        assert [plain(entry.examples) for entry in block.sequences] == found[number]
