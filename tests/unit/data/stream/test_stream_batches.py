"""Micro-batches of a stream: the same for any cut of a step, any rank, and after any stop."""

import json
from itertools import chain

import pytest
import torch

from newtune.data.layout import BatchLayout
from newtune.data.stream.batches import StreamedBatches
from newtune.errors import DataError
from newtune.plan.parts import StepPlan
from streams import ListedRows, block_reader, text_source, texts, write_texts

STEPS = 12


def make(folder, *, rows=1, accumulation=4, world=1, rank=0, examples=10, **options):
    first = write_texts(folder / "a.jsonl", texts(17, seed=1))
    second = write_texts(folder / "b.jsonl", texts(11, seed=2, longest=30))
    sources = [text_source(first, chunk=4), text_source(second)]
    reader = block_reader(sources, examples=examples, **{"packed": True, **options})
    steps = StepPlan(rows, accumulation, world, 1, (STEPS,), 42)
    layout = BatchLayout(3, None, None, flatten=True)
    return StreamedBatches(reader, steps, layout, rank=rank)


@pytest.fixture
def stream(tmp_path):
    made = []

    def make_one(**options):
        made.append(make(tmp_path, **options))
        return made[-1]

    yield make_one
    for batches in made:
        batches.close()


def rows_in(batch):
    """Return the examples of a batch as lists, in order."""
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    ids = batch["input_ids"][0].tolist()
    return [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def steps_of(batches):
    """Return the examples of each step."""
    every = [rows_in(batches[index]) for index in range(len(batches))]
    size = batches.steps.accumulation
    return [list(chain(*every[start : start + size])) for start in range(0, len(every), size)]


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(torch.as_tensor(left[key]), torch.as_tensor(right[key])), key


def test_a_step_is_the_same_however_it_is_cut(stream):
    four = steps_of(stream(rows=1, accumulation=4))
    assert four == steps_of(stream(rows=2, accumulation=2))
    assert four == steps_of(stream(rows=4, accumulation=1))


def test_ranks_share_the_steps_of_one_process(stream):
    alone = steps_of(stream(rows=1, accumulation=4))
    ranks = [stream(rows=1, accumulation=2, world=2, rank=rank) for rank in (0, 1)]
    shared = [
        list(chain(*(rows_in(ranks[rank][2 * step + part]) for part in (0, 1) for rank in (0, 1))))
        for step in range(STEPS)
    ]
    assert shared == alone


@pytest.mark.parametrize(
    "options", [{}, {"examples": 1}, {"join": True, "packed": False}, {"packed": False}]
)
def test_a_place_gives_the_rest_of_the_run(stream, options):
    whole = stream(**options)
    batches, places = [], {}
    for index in range(len(whole)):
        batches.append(whole[index])
        if index % 4 == 1:  # two micro-batches of the step have been handed out already
            first = index - 1
            places[first] = json.loads(json.dumps(whole.state_at(first)))
    for index in (0, 4, 20, 44):
        resumed = stream(**options)
        resumed.restore(places[index])
        for later in range(index, len(whole)):
            same(resumed[later], batches[later])
        assert resumed.counts_at(len(whole)) == whole.counts_at(len(whole))


def test_a_place_is_of_what_was_handed_out_not_of_what_was_read_ahead(stream):
    batches = stream(examples=10)
    batches[0]
    batches._ahead.result()
    assert batches.state_at(0)["place"]["block"] == 0
    assert batches.report_at(0) == {"rows_read": 0, "rows_dropped": 0}
    assert 0 < batches.report_at(4)["rows_read"] < 20


def test_without_a_place_the_run_is_walked_to_where_it_stopped(stream):
    whole, late = stream(), stream()
    expected = [whole[index] for index in range(24)]
    same(late[20], expected[20])


def test_other_data_is_refused(stream, tmp_path):
    batches = stream()
    batches[0]
    state = batches.state_at(0)
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(
        DataError, match=r"b\.jsonl: not the data that the checkpoint's run has read"
    ):
        stream().restore(state)


def test_rows_of_a_micro_batch_are_named(stream):
    batches = stream(packed=False)
    batches[0]
    (place,) = batches.rows_of(0)
    assert place.startswith(("a.jsonl, row ", "b.jsonl, row "))


def test_the_run_ends_where_the_plan_does(stream):
    batches = stream()
    assert len(batches) == STEPS * 4
    with pytest.raises(IndexError):
        batches[STEPS * 4]


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_wanted(tmp_path):
    rows = [{"text": text} for text in texts(30)] + [{"other": 1}]
    reader = block_reader([text_source(ListedRows(rows), chunk=4)], examples=10)
    steps = StepPlan(5, 1, 1, 1, (20,), 42)
    layout = BatchLayout(3, None, None, flatten=True)
    batches = StreamedBatches(reader, steps, layout)
    for index in range(4):  # 20 of the 30 rows: the third block is being read
        batches[index]
    with pytest.raises(DataError, match="listed, row 31: no field `text`"):
        [batches[index] for index in range(4, 8)]
    batches.close()


def test_counts_name_the_source_and_its_share(stream):
    batches = stream()
    for index in range(len(batches)):
        batches[index]
    first, second = batches.read_at_end()
    assert (first["name"], second["name"]) == ("a.jsonl", "b.jsonl")
    assert first["token_share"] == pytest.approx(0.5, abs=0.1)
    assert first["rows_read"] > second["rows_read"] > 0
