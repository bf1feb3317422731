"""Shards: only what is missing is tokenised, by one process at a time, and none is ever half."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from newtune.data import counts, shards
from newtune.data.shards import processes_worth_starting, shard_counts
from newtune.errors import DataError
from prepared import prepare, questions, write_rows

TESTS = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "prepared").rglob("*.arrow"))


def contents(data) -> list[tuple]:
    return [(tuple(e.input_ids), tuple(e.labels)) for e in data.train]


def two_datasets(folder: Path) -> list[dict]:
    write_rows(folder / "a.jsonl", questions(25))
    write_rows(folder / "b.jsonl", questions(15, start=100))
    return [{"path": "a.jsonl", "type": "alpaca"}, {"path": "b.jsonl", "type": "alpaca"}]


def test_a_change_does_again_exactly_the_datasets_it_touches(tmp_path):
    datasets = two_datasets(tmp_path)

    def built(**keys) -> int:
        return prepare(tmp_path, **{"datasets": datasets, **keys}).shards_built

    assert built() == 5
    assert built() == 0
    assert built(datasets=datasets[::-1]) == 0
    assert built(datasets=[datasets[0], {**datasets[1], "train_on_inputs": True}]) == 2
    write_rows(tmp_path / "a.jsonl", questions(24))
    assert built() == 3
    assert built(train_on_inputs=True) == 3  # b with prompts trained is there already
    assert built(sequence_len=300) == 5
    assert built() == 0  # what was prepared before is never deleted


@pytest.mark.parametrize(
    "keys",
    [
        {"val_set_size": 0.2},
        {"seed": 7},
        {"shuffle_merged_datasets": False},
        {"dataset_exact_deduplication": True},
        {"dataset_mixing": {"by": "tokens", "temperature": 2.0}},
        {"sample_packing": True},
        {"curriculum_sampling": True},
        {"dataset_shard_num": 2, "dataset_shard_idx": 1},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_choosing_and_mixing_anew_tokenises_nothing(tmp_path, keys):
    datasets = two_datasets(tmp_path)
    prepare(tmp_path, datasets=datasets)
    assert prepare(tmp_path, datasets=datasets, **keys).shards_built == 0


def test_a_weight_tokenises_nothing(tmp_path):
    datasets = two_datasets(tmp_path)
    prepare(tmp_path, datasets=datasets)
    data = prepare(tmp_path, datasets=[{**datasets[0], "weight": 2}, datasets[1]])
    assert data.shards_built == 0
    assert data.facts.packs_in_epoch(0) == 65
    assert [count.mixed.examples for count in data.counts] == [50, 15]


def test_the_number_of_files_is_what_was_asked_for_and_the_data_the_same(tmp_path):
    datasets = two_datasets(tmp_path)
    plain = contents(prepare(tmp_path, datasets=datasets))
    shared = prepare(tmp_path, datasets=datasets, num_dataset_shards_to_save=8)
    assert len(shared.train.files) == 8
    pieces = [{**datasets[0], "preprocess_shards": 7}, datasets[1]]
    cut = prepare(tmp_path, datasets=pieces)
    assert len(cut.train.files) == 9
    assert contents(shared) == contents(cut) == plain


def test_shards_are_shared_out_and_none_is_empty():
    assert shard_counts([25, 15], [None, None], None) == [3, 2]
    assert shard_counts([25, 15], [None, None], 8) == [5, 3]
    assert shard_counts([1000, 1], [None, None], 4) == [4, 1]
    assert shard_counts([3], [7], 100) == [3]


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from newtune.data import shards
from newtune.data.build import build_shard
from prepared import prepare

shards.SHARD_ROWS = 10
left = int(sys.argv[2])

def build_until_killed(*arguments):
    global left
    left -= 1
    tally = build_shard(*arguments)  # the file is written, not yet renamed
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return tally

if left < 1000:
    shards.build_shard = build_until_killed
data = prepare(Path(sys.argv[1]), datasets=[{{"path": "rows.jsonl", "type": "alpaca"}}])
print("built", data.shards_built, len(data.train))
"""


def start(folder: Path, kill_after: int = 1000) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(TESTS))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(kill_after)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )


def test_a_killed_preparation_goes_on_with_what_is_whole(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(60))
    process = start(tmp_path, kill_after=3)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    # whole is what has its counts beside it; several threads build, so some may be on the way
    whole = [path for path in files(tmp_path) if path.with_suffix(".json").is_file()]
    assert 1 <= len(whole) <= 3
    before = {path: path.stat().st_mtime_ns for path in whole}
    data = prepare(tmp_path)
    assert data.shards_built == 6 - len(whole)
    assert {path: path.stat().st_mtime_ns for path in whole} == before
    assert contents(data) == contents(prepare(tmp_path, force=True))


def test_two_processes_at_once_tokenise_once(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(60))
    processes = [start(tmp_path), start(tmp_path)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert sorted(said) == ["built 0 60\n", "built 6 60\n"]
    assert prepare(tmp_path).shards_built == 0


def test_who_waits_for_another_process_says_so(tmp_path, caplog):
    write_rows(tmp_path / "rows.jsonl", questions(5))
    folder = Path(prepare(tmp_path).train.files[0].path).parent
    held = FileLock(folder.with_name(f".{folder.name}.lock"))
    with caplog.at_level("INFO", logger="newtune"), ThreadPoolExecutor(1) as executor:
        with held:
            waiting = executor.submit(prepare, tmp_path, force=True)
            while "Another process prepares" not in caplog.text:
                assert not waiting.done()
                time.sleep(0.01)
        assert waiting.result(timeout=60).shards_built == 1


def test_a_full_disk_leaves_no_half_shard(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(30))
    whole = prepare(tmp_path)
    largest = max(path.stat().st_size for path in files(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        with pytest.raises(DataError, match="no room to write prepared data"):
            prepare(tmp_path, dataset_prepared_path=str(tmp_path / "full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [path for path in (tmp_path / "full").rglob("*") if path.is_file()]
    assert all(path.suffix == ".lock" for path in left)
    again = prepare(tmp_path, dataset_prepared_path=str(tmp_path / "full"))
    assert contents(again) == contents(whole)


def test_a_shard_without_its_end_is_built_again(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(30))
    whole = contents(prepare(tmp_path))
    victim = files(tmp_path)[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    data = prepare(tmp_path)
    assert data.shards_built == 1
    assert contents(data) == whole


def test_worker_processes_give_what_threads_give(tmp_path):
    rows = questions(30)
    rows[7]["output"] = None
    write_rows(tmp_path / "rows.jsonl", rows)
    alone = prepare(tmp_path, dataset_num_proc=1)
    together = prepare(tmp_path, dataset_num_proc=2, force=True)
    assert together.shards_built == 3
    assert alone.counts == together.counts
    assert contents(alone) == contents(together)


@pytest.mark.parametrize(
    ("rows", "cores", "processes"),
    [(49_999, 64, 1), (50_000, 64, 64), (50_000, 4, 1), (50_000, 5, 5)],
)
def test_processes_are_started_for_many_rows_on_many_cores(rows, cores, processes):
    assert processes_worth_starting(rows, cores) == processes


def test_an_error_in_a_worker_process_names_the_row(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [*questions(24), {"instruction": "x"}])
    with pytest.raises(DataError, match=r"line 25: no field `output`"):
        prepare(tmp_path, dataset_num_proc=2)
    assert len(files(tmp_path)) == 2  # the shards before it are whole and stay


def test_every_dropped_row_is_kept_in_the_counts_of_its_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "LISTED", 100)
    rows = [{"instruction": "a", "output": None}] * 150 + questions(5)
    write_rows(tmp_path / "rows.jsonl", rows)
    data = prepare(tmp_path)
    assert [(d.rows, len(d.examples)) for d in data.counts[0].dropped] == [(150, 100)]
    counted = [json.loads(path.with_suffix(".json").read_text()) for path in files(tmp_path)]
    numbers = [row[0] for part in counted for rows in part["dropped"].values() for row in rows]
    assert numbers == list(range(1, 151))


def test_the_same_dataset_twice_is_tokenised_once(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(20))
    entry = {"path": "rows.jsonl", "type": "alpaca"}
    data = prepare(tmp_path, datasets=[entry, entry], shuffle_merged_datasets=False)
    assert (data.shards_built, len(data.train)) == (2, 40)
    datasets, numbers = data.train.origins()
    assert datasets.tolist() == [0] * 20 + [1] * 20
    assert np.array_equal(numbers[:20], numbers[20:])
