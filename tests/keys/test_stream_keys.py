"""Every key of streamed data changes what is trained; without them it is what is prepared."""

import json
from functools import cache

import pytest
import torch

from newtune.config.load import load_config
from newtune.data.collate import collate
from newtune.data.stream.prepare import StreamedData
from newtune.prepare import prepare
from runs import PAD, plain_loss_sum
from streams import sequences, texts, write_texts
from tiny import save_tiny_checkpoint, tiny_llama

BASE = """
base_model: {folder}/model
pretraining_dataset:
  - path: {folder}/rows.jsonl
sequence_len: 96
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 0.001
max_steps: 5
dataset_prepared_path: {folder}/cache
output_dir: {folder}/out
bf16: false
"""
TWO = "[{path: rows.jsonl, type: completion, text_column: other}]"
CASES = [
    ("streaming_multipack_buffer_size", "3", ()),
    ("sample_packing", "true", ()),
    ("pretraining_sample_concatenation", "true", ()),
    ("pretrain_multipack_attn", "false", ("--sample_packing", "true")),
    ("shuffle_merged_datasets", "false", ()),
    ("seed", "7", ()),
    ("max_steps", "6", ()),
    ("pretraining_dataset.0.skip", "5", ()),
    ("pretraining_dataset.0.split", "train[:4]", ()),
    ("pretraining_dataset.0.text_column", "other", ()),
    ("pretraining_dataset.0.shards", "2", ()),
    ("pretraining_dataset.0.weight", "5", ("--datasets", TWO)),
    ("curriculum_sampling", "true", ()),
    ("sample_packing_sequentially", "true", ("--sample_packing", "true")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream-keys")
    save_tiny_checkpoint(folder / "model")
    rows = [{"text": text, "other": text[::-1]} for text in texts(30, seed=4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(BASE.format(folder=folder))
    return folder


def first(folder, overrides, count=20):
    config = load_config(folder / "run.yaml", overrides)
    prepared = prepare(config)
    assert isinstance(prepared.data, StreamedData)
    return prepared, sequences(prepared.data.blocks, count), config


@cache
def outcome(folder, overrides):
    prepared, laid, config = first(folder, overrides)
    tokens = [[(e.input_ids.tolist(), e.labels.tolist()) for e in entry.examples] for entry in laid]
    return (tokens, prepared.plan.training.steps), config.unread_keys()


@pytest.mark.parametrize(("key", "value", "besides"), CASES, ids=[case[0] for case in CASES])
def test_the_key_changes_the_stream(folder, key, value, besides):
    without, _ = outcome(folder, besides)
    with_it, unread = outcome(folder, (*besides, f"--{key}", value))
    assert not unread
    assert with_it != without


@pytest.mark.parametrize("key", ["sample_packing", "pretraining_sample_concatenation"])
def test_the_loss_of_documents_that_share_a_sequence_is_that_of_each_alone(folder, key):
    _, laid, _ = first(folder, (f"--{key}", "true"), 2)
    model = tiny_llama()
    for entry in laid:
        assert len(entry.examples) > 1
        with torch.no_grad():
            together, count = plain_loss_sum(
                model, collate([entry.examples], pad_id=PAD, pad_to=None, flatten=False)
            )
            alone = [
                plain_loss_sum(model, collate([[e]], pad_id=PAD, pad_to=None, flatten=False))
                for e in entry.examples
                if len(e.input_ids) > 1
            ]
        assert count == sum(one for _, one in alone)
        torch.testing.assert_close(together, sum(loss for loss, _ in alone), rtol=1e-5, atol=1e-4)


def test_rows_that_are_written_elsewhere_are_found(folder):
    write_texts(folder / "words.jsonl", texts(30, seed=4), column="words")
    overrides = (
        *("--pretraining_dataset.0.path", str(folder / "words.jsonl")),
        *("--pretraining_dataset.0.text_column", "words"),
    )
    assert outcome(folder, overrides)[0] == outcome(folder, ())[0]
