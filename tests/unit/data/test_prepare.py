"""Datasets of a configuration become prepared data: counted, split, cached by content."""

import json
import pickle

import numpy as np
import pytest

from newtune.data.batches import EvalBatches, TrainBatches
from newtune.errors import DataError
from newtune.plan.parts import StepPlan
from newtune.types import IGNORE_INDEX
from prepared import prepare, questions, write_rows
from tiny import tiny_tokenizer


def test_prompts_are_not_trained_and_answers_with_their_end_are(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(3))
    data = prepare(tmp_path, shuffle_merged_datasets=False)
    tokenizer = tiny_tokenizer()
    texts = [tokenizer.decode(e.labels[e.labels != IGNORE_INDEX]) for e in data.train]
    assert texts == [f"It is {n + 1}.</s>" for n in range(3)]
    assert [data.place(i)[-5:] for i in range(3)] == ["row 1", "row 2", "row 3"]
    assert data.facts.trained_tokens == sum((e.labels != IGNORE_INDEX).sum() for e in data.train)
    assert data.facts.tokens == sum(len(e.input_ids) for e in data.train)


def test_what_is_held_out_is_not_trained_and_a_seed_gives_the_same_split(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(50))
    data = prepare(tmp_path, val_set_size=0.2)
    again = prepare(tmp_path, val_set_size=0.2, force=True)
    other = prepare(tmp_path, val_set_size=0.2, seed=7)
    held_out = {data.evaluation.origin(i) for i in range(len(data.evaluation))}
    trained = {data.train.origin(i) for i in range(len(data.train))}
    assert (len(held_out), len(trained), len(held_out & trained)) == (10, 40, 0)
    assert np.array_equal(data.train.indices, again.train.indices)
    assert not np.array_equal(data.evaluation.indices, other.evaluation.indices)


def test_pieces_of_one_document_stay_on_one_side(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"text": f"{n} " * 400} for n in range(10)])
    data = prepare(
        tmp_path,
        datasets=[{"path": "rows.jsonl", "type": "completion"}],
        val_set_size=4,
        sequence_len=64,
    )
    held_out = {data.evaluation.origin(i) for i in range(len(data.evaluation))}
    trained = {data.train.origin(i) for i in range(len(data.train))}
    assert len(held_out) == 4
    assert not held_out & trained


def test_the_cache_is_used_only_when_nothing_changed(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", questions(5))
    assert not prepare(tmp_path).from_cache
    assert prepare(tmp_path).from_cache
    assert prepare(tmp_path, micro_batch_size=4).from_cache
    assert not prepare(tmp_path, sequence_len=300).from_cache
    assert not prepare(tmp_path, train_on_inputs=True).from_cache
    before = rows.stat()
    rows.write_text(rows.read_text().replace("It is 1.", "It is 9."))
    assert rows.stat().st_size == before.st_size
    assert not prepare(tmp_path).from_cache
    assert not list((tmp_path / "prepared").rglob("*.partial"))


def test_test_datasets_are_held_out_whole(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(5))
    write_rows(tmp_path / "test.jsonl", questions(3, start=100))
    data = prepare(tmp_path, test_datasets=[{"path": "test.jsonl", "type": "alpaca"}])
    assert (len(data.train), len(data.evaluation)) == (5, 3)
    assert [count.rows_read for count in data.counts] == [5, 3]


def test_equal_rows_are_trained_once_and_never_when_held_out(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(5) + questions(3))
    write_rows(tmp_path / "test.jsonl", questions(2))
    data = prepare(
        tmp_path,
        dataset_exact_deduplication=True,
        test_datasets=[{"path": "test.jsonl", "type": "alpaca"}],
    )
    assert len(data.train) == 3
    assert len(data.evaluation) == 2
    assert [count.duplicates for count in data.counts] == [5, 0]


def test_held_out_data_is_measured_once_even_if_it_repeats_itself(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(5))
    write_rows(tmp_path / "test.jsonl", questions(3, start=50) * 2)
    keys = {"test_datasets": [{"path": "test.jsonl", "type": "alpaca"}]}
    assert len(prepare(tmp_path, **keys).evaluation) == 6
    data = prepare(tmp_path, **keys, dataset_exact_deduplication=True)
    assert len(data.evaluation) == 3
    assert [count.duplicates for count in data.counts] == [0, 3]


def test_equal_tokens_with_other_labels_are_no_duplicates(tmp_path):
    rows = [{"input_ids": [7, 8, 9], "labels": labels} for labels in ([7, 8, 9], [-100, -100, 9])]
    write_rows(tmp_path / "rows.jsonl", rows)
    data = prepare(tmp_path, datasets=[{"path": "rows.jsonl"}], dataset_exact_deduplication=True)
    assert len(data.train) == 2


def test_held_out_rows_may_have_another_length(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [*questions(3), {"instruction": "a" * 300, "output": "b"}])
    test = {"test_datasets": [{"path": "rows.jsonl", "type": "alpaca"}]}
    data = prepare(tmp_path, **test, eval_sequence_len=1000, pad_to_sequence_len=True)
    assert (len(data.train), len(data.evaluation)) == (3, 4)
    assert EvalBatches(data, 2)[0]["input_ids"].shape == (2, 1000)
    assert TrainBatches(data, steps())[0]["input_ids"].shape == (2, 256)
    assert len(prepare(tmp_path, **test).evaluation) == 3


def test_a_curriculum_keeps_the_order_of_the_files_in_every_epoch(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(12))
    for packing in (False, True):
        data = prepare(tmp_path, curriculum_sampling=True, sample_packing=packing)
        for epoch in range(2):
            places = np.concatenate(data.sequences(epoch))
            assert [data.train.origin(place)[1] for place in places] == list(range(1, 13))


def test_packs_filled_in_turn_follow_the_order_that_the_epoch_draws(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(40))
    data = prepare(tmp_path, sample_packing=True, sample_packing_sequentially=True)
    orders = [np.concatenate(data.sequences(epoch)).tolist() for epoch in (0, 1)]
    drawn = np.random.default_rng((42, 1)).permutation(40).tolist()
    assert orders[1] == drawn != orders[0]


def test_a_mixture_is_the_same_on_any_number_of_ranks_and_leaves_held_out_data_alone(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(30))
    write_rows(tmp_path / "more.jsonl", questions(8, start=100))
    datasets = [
        {"path": "rows.jsonl", "type": "alpaca", "weight": 0.5},
        {"path": "more.jsonl", "type": "alpaca", "weight": 3},
    ]
    keys = {"datasets": datasets, "val_set_size": 6, "sample_packing": True, "sequence_len": 400}
    data = prepare(tmp_path, **keys)
    unmixed = prepare(tmp_path, **{**keys, "datasets": [{**d, "weight": 1} for d in datasets]})
    assert np.array_equal(data.evaluation.indices, unmixed.evaluation.indices)
    counts = np.bincount(data.train.datasets())
    assert [count.mixed.examples for count in data.counts] == [-(-counts[0] // 2), 3 * counts[1]]
    for world_size in (1, 2):
        plan = steps(world_size=world_size)
        per_epoch = [-(-data.facts.packs_in_epoch(e) // plan.rows_per_step) for e in (0, 1)]
        plan = steps(world_size=world_size, steps_in_epoch=tuple(per_epoch))
        ranks = [TrainBatches(data, plan, rank=rank) for rank in range(world_size)]
        begin = 0
        for epoch, steps_of_epoch in enumerate(per_epoch):
            end = begin + steps_of_epoch * plan.accumulation
            rows = [row for rank in ranks for i in range(begin, end) for row in rank.examples_of(i)]
            assert sorted(rows) == sorted(data.mixture.epoch(epoch).tolist())
            begin = end
    fresh = pickle.loads(pickle.dumps(ranks[0]))
    assert fresh.examples_of(len(fresh) - 1) == ranks[0].examples_of(len(fresh) - 1)


def test_the_last_piece_of_a_document_is_named_as_one(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"text": "a b c d e f g h"}])
    tokens = prepare(tmp_path, datasets=[{"path": "rows.jsonl", "type": "completion"}]).facts.tokens
    counts = prepare(
        tmp_path,
        datasets=[{"path": "rows.jsonl", "type": "completion"}],
        sequence_len=tokens - 1,
    ).counts[0]
    assert (counts.rows_cut, counts.examples) == (1, 1)
    assert [dropped.reason for dropped in counts.dropped] == [
        "no trained token (piece of a cut document)"
    ]


def test_long_rows_are_dropped_and_named(tmp_path):
    long = {"instruction": "x" * 900, "output": "y"}
    write_rows(tmp_path / "rows.jsonl", [*questions(2), long])
    dropped = prepare(tmp_path).counts[0].dropped
    assert [(d.reason, d.rows, d.first_row) for d in dropped] == [("longer than 256 tokens", 1, 3)]
    with pytest.raises(DataError, match=r"line 3: \d+ tokens"):
        prepare(tmp_path, excess_length_strategy="raise")
    long["instruction"], long["output"] = "y", "x" * 900
    write_rows(tmp_path / "rows.jsonl", [*questions(2), long])
    counts = prepare(tmp_path, excess_length_strategy="truncate").counts[0]
    assert (counts.rows_truncated, counts.first_truncated_row, counts.examples) == (1, 3, 3)
    assert counts.length_percentiles[100] == 256


def test_a_shard_of_each_dataset_and_of_the_whole(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(10))
    entry = {"path": "rows.jsonl", "type": "alpaca", "shards": 5, "shards_idx": 1}
    assert len(prepare(tmp_path, datasets=[entry]).train) == 2
    halves = [prepare(tmp_path, dataset_shard_num=2, dataset_shard_idx=idx).train for idx in (0, 1)]
    rows = sorted(half.origin(i)[1] for half in halves for i in range(len(half)))
    assert rows == list(range(1, 11))


def test_nothing_to_train_is_an_error_that_says_why(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"instruction": "a", "output": None}] * 2)
    with pytest.raises(DataError, match=r"no trained token in 2 rows.*`output` is empty.*line 1"):
        prepare(tmp_path)


def steps(**values) -> StepPlan:
    given = {
        "rows_per_device": 2,
        "accumulation": 2,
        "world_size": 1,
        "epochs": 2.0,
        "steps_in_epoch": (2, 2),
        "seed": 42,
    }
    return StepPlan(**{**given, **values})


@pytest.mark.parametrize("packing", [False, True])
def test_every_example_is_used_once_an_epoch_on_any_number_of_ranks(tmp_path, packing):
    write_rows(tmp_path / "rows.jsonl", questions(29))
    data = prepare(tmp_path, sample_packing=packing, sequence_len=400)
    for world_size in (1, 2, 3):
        sequences = data.facts.packs_in_epoch(0)
        plan = steps(world_size=world_size)
        per_epoch = -(-sequences // plan.rows_per_step)
        plan = steps(world_size=world_size, steps_in_epoch=(per_epoch, per_epoch))
        ranks = [TrainBatches(data, plan, rank=rank) for rank in range(world_size)]
        half = per_epoch * plan.accumulation
        epochs = [
            [row for rank in ranks for i in part for row in rank.examples_of(i)]
            for part in (range(half), range(half, 2 * half))
        ]
        assert len(ranks[0]) == 2 * half
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(29))
        assert epochs[0] != epochs[1]


def test_a_batch_is_the_same_whatever_came_before_and_in_a_worker_process(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(20))
    data = prepare(tmp_path, sample_packing=True)
    plan = steps(steps_in_epoch=(3, 3))
    batches = TrainBatches(data, plan)
    fresh = pickle.loads(pickle.dumps(TrainBatches(data, plan)))
    for index in (9, 2, 7):
        assert batches[index]["input_ids"].equal(fresh[index]["input_ids"])
        assert batches.examples_of(index) == fresh.examples_of(index)


def test_a_filler_trains_nothing(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(3))
    batches = TrainBatches(prepare(tmp_path), steps(steps_in_epoch=(1,), accumulation=4))
    assert [batches.examples_of(i) == [] for i in range(4)] == [False, False, True, True]
    assert (batches[3]["labels"] == IGNORE_INDEX).all()


def test_held_out_batches_cover_everything_once(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(30))
    data = prepare(tmp_path, val_set_size=11, sample_packing=True, eval_sample_packing=False)
    batches = EvalBatches(data, 4)
    assert sorted(row for i in range(len(batches)) for row in batches.examples_of(i)) == list(
        range(11)
    )
    assert len(EvalBatches(data, 4, world_size=2)) == 2


CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_a_template_that_never_ends_a_turn_is_an_error(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [CHAT])
    keys = {
        "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
        "chat_template": "jinja",
        "chat_template_jinja": "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}",
    }
    with pytest.raises(DataError, match="never ends a trained turn"):
        prepare(tmp_path, **keys)
    keys["datasets"] = [{**keys["datasets"][0], "train_on_eos": "none"}]
    assert prepare(tmp_path, **keys).chat_template == keys["chat_template_jinja"]


def test_an_unknown_function_is_found_before_anything_is_written(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(2))
    with pytest.raises(DataError, match="`type: no_such_rows:read`: no module `no_such_rows`"):
        prepare(tmp_path, datasets=[{"path": "rows.jsonl", "type": "no_such_rows:read"}])
    assert not list((tmp_path / "prepared").glob("*.partial"))


def test_a_function_beside_the_configuration_reads_the_rows(tmp_path):
    (tmp_path / "rows_beside_config.py").write_text(
        "def pairs(row):\n    return [(row['instruction'], False), (row['output'], True)]\n"
    )
    write_rows(tmp_path / "rows.jsonl", questions(2))
    datasets = [{"path": "rows.jsonl", "type": "rows_beside_config:pairs"}]
    data = prepare(tmp_path, datasets=datasets, shuffle_merged_datasets=False)
    tokenizer = tiny_tokenizer()
    assert [tokenizer.decode(example.input_ids) for example in data.train] == [
        "Add one to 0.It is 1.",
        "Add one to 1.It is 2.",
    ]
    labels = data.train[0].labels
    assert tokenizer.decode(labels[labels != IGNORE_INDEX]) == "It is 1."


def test_a_failed_preparation_leaves_nothing_behind(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [*questions(3), {"instruction": "x"}])
    with pytest.raises(DataError, match="no field `output`"):
        prepare(tmp_path)
    left = [path for path in (tmp_path / "prepared").rglob("*") if path.is_file()]
    assert all(path.suffix == ".lock" for path in left)


def test_given_estimates_are_compared_with_the_count(tmp_path, caplog):
    write_rows(tmp_path / "rows.jsonl", questions(3))
    with caplog.at_level("INFO"):
        data = prepare(tmp_path, total_num_tokens=7)
    assert f"given as 7; counted: {data.facts.tokens}" in caplog.text


def test_malformed_rows_are_dropped_counted_and_listed_when_asked_for(tmp_path):
    rows = [json.dumps(row) for row in questions(4)]
    rows[1] = '{"instruction": "cut o'
    rows[2] = '{"instruction": "no answer"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: malformed JSON"):
        prepare(tmp_path)
    entry = {"path": "rows.jsonl", "type": "alpaca", "on_error": "drop"}
    data = prepare(tmp_path, datasets=[entry])
    (counts,) = data.counts
    (dropped,) = counts.dropped
    assert (counts.rows_read, len(data.train)) == (4, 2)
    assert (dropped.reason, dropped.rows, dropped.first_row) == ("malformed", 2, 2)
    assert "line 2: malformed JSON: Unterminated string" in dropped.examples[0]
    assert "line 3: no field `output`" in dropped.examples[1]
    assert sorted(data.place(i)[-5:] for i in range(2)) == ["row 1", "row 4"]


def test_a_micro_batch_names_the_rows_that_it_holds(tmp_path):
    write_rows(tmp_path / "rows.jsonl", questions(5))
    data = prepare(tmp_path, sample_packing=True)
    batches = TrainBatches(data, steps())
    assert batches.rows_of(0) == [data.place(example) for example in batches.examples_of(0)]
