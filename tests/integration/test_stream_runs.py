"""Streamed runs from configuration to result; a killed one goes on as if it never stopped."""

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from newtune.config.load import load_config
from newtune.errors import DataError
from newtune.prepare import prepare
from newtune.results import evaluate
from newtune.run import train
from newtune.run_dir import read_json_lines
from streams import texts, write_texts
from tiny import save_tiny_checkpoint

BASE = """
base_model: {folder}/model
pretraining_dataset:
  - path: {folder}/a.jsonl
    type: pretrain
  - path: {folder}/b.jsonl.gz
  - path: {folder}/c
    weight: 0.5
sequence_len: 96
sample_packing: true
streaming_multipack_buffer_size: 20
micro_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 0.001
max_steps: 9
save_steps: 2
logging_steps: 1
dataset_prepared_path: {folder}/cache
output_dir: {folder}/out
bf16: false
"""
WHOLE = """
import sys
from newtune.config.load import load_config
from newtune.run import train
train(load_config(sys.argv[1], sys.argv[2:]))
"""
KILLED = """
import os, signal, sys
from newtune.config.load import load_config
from newtune.run import train
from newtune.training.stream_place import StreamPlace
count = StreamPlace.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    count(self, args, state, control, **kwargs)
    if state.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
StreamPlace.on_step_end = on_step_end
train(load_config(sys.argv[1], ["--output_dir", sys.argv[2]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    save_tiny_checkpoint(folder / "model")
    write_texts(folder / "a.jsonl", texts(40, seed=1))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts(25, seed=2, longest=20))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "c").mkdir()
    for number in range(3):
        table = pa.table({"text": texts(9, seed=3 + number)})
        pyarrow.parquet.write_table(table, folder / f"c/part-{number}.parquet", row_group_size=4)
    (folder / "run.yaml").write_text(BASE.format(folder=folder))
    return folder


def comparable(out):
    varying = {"time", "tokens_per_second", "memory_bytes", "train_runtime"}
    lines = [{k: v for k, v in line.items() if k not in varying} for line in read_json_lines(out)]
    return [line for line in lines if "loss" in line]


def in_a_process(folder, out, *words):
    """Train as a user does: what other tests left in this process cannot change the arithmetic."""
    command = [sys.executable, "-c", WHOLE, str(folder / "run.yaml"), "--output_dir", str(out)]
    subprocess.run([*command, *words], check=True, capture_output=True)


def test_a_killed_run_goes_on_bit_for_bit(folder):
    whole, killed = folder / "whole", folder / "killed"
    in_a_process(folder, whole)
    script = [sys.executable, "-c", KILLED, str(folder / "run.yaml"), str(killed)]
    assert subprocess.run(script, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    state = json.loads((killed / "checkpoint-6" / "newtune_state.json").read_text())
    assert state["stream"]["first"] != 24, "the place should lie within a buffer"
    in_a_process(folder, killed, "--auto_resume_from_checkpoints", "true")
    left, right = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert left.keys() == right.keys()
    assert all((left[name] == right[name]).all() for name in left)
    assert comparable(whole / "metrics.jsonl") == comparable(killed / "metrics.jsonl")
    counts = json.loads((whole / "data.json").read_text())
    assert counts == json.loads((killed / "data.json").read_text())
    assert [Path(entry["name"]).name for entry in counts] == ["a.jsonl", "b.jsonl.gz", "c"]
    assert sum(entry["token_share"] for entry in counts) == pytest.approx(1, abs=0.001)


def test_the_plan_says_what_is_known(folder):
    plan = prepare(load_config(folder / "run.yaml")).plan
    assert plan.training.steps.total_steps == 9
    assert plan.tokens_per_step == 96 * 4
    assert plan.data_facts.streamed


def test_a_source_without_a_trained_token_stops_before_training(folder):
    empty = write_texts(folder / "empty.jsonl", [""] * 5)
    config = load_config(folder / "run.yaml", ["--pretraining_dataset.1.path", str(empty)])
    with pytest.raises(DataError, match="5 rows in a row gave no trained token"):
        prepare(config)


def test_held_out_data_is_prepared_ahead(folder):
    write_texts(folder / "test.jsonl", texts(6, seed=9))
    overrides = [
        *("--output_dir", str(folder / "evaluated")),
        *("--max_steps", "2"),
        *("--test_datasets", f"[{{path: {folder}/test.jsonl, type: completion}}]"),
    ]
    config = load_config(folder / "run.yaml", overrides)
    report = train(config)
    assert [step for step, _ in report.eval_losses] == [2]
    counts = json.loads((folder / "evaluated" / "data.json").read_text())
    assert [Path(entry["name"]).name for entry in counts][-1] == "test.jsonl"
    assert counts[-1]["rows_read"] == 6
    assert evaluate(config).scores["eval_loss"] == pytest.approx(report.eval_losses[0][1], rel=1e-5)
