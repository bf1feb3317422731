"""Blocks: a function of the place; mixed by shares; packed, or joined to full rows."""

import json

import numpy as np
import pytest

from newtune.data.packing import pack_examples
from newtune.data.stream.blocks import Stopped, join_documents
from newtune.data.stream.mixture import next_source
from newtune.data.stream.state import StreamState, token_shares
from newtune.types import IGNORE_INDEX, Example
from streams import as_ids, block_reader, ids_of, sequences, text_source, texts, write_texts


def document(*ids):
    values = np.array(ids, dtype=np.int32)
    return Example(values, values.copy())


def two_sources(tmp_path, **options):
    first = write_texts(tmp_path / "a.jsonl", texts(17, seed=1))
    second = write_texts(tmp_path / "b.jsonl", texts(11, seed=2, longest=30))
    return block_reader([text_source(first, chunk=4), text_source(second)], **options)


def test_the_source_furthest_behind_comes_next():
    assert next_source([0, 0], [1, 1]) == 0
    assert next_source([5, 0], [1, 1]) == 1
    assert next_source([5, 4], [3, 1]) == 0
    assert next_source([14, 4], [3, 1]) == 1


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.2, 0.5]])
def test_shares_of_tokens_are_kept_within_a_row(tmp_path, weights):
    reader = two_sources(tmp_path, weights=weights, examples=40)
    place = StreamState.beginning(2)
    for _ in range(5):
        place = reader.read(place).end
        total = sum(count.tokens for count in place.counts)
        longest = 300
        for count, weight in zip(place.counts, weights, strict=True):
            assert abs(count.tokens - weight / sum(weights) * total) <= longest
    assert token_shares(place.counts) == pytest.approx(
        [weight / sum(weights) for weight in weights], abs=0.02
    )


def test_a_block_is_a_function_of_its_place(tmp_path):
    reader, other = two_sources(tmp_path, packed=True), two_sources(tmp_path, packed=True)
    blocks = [reader.read(StreamState.beginning(2))]
    for _ in range(6):
        blocks.append(reader.read(blocks[-1].end))
    for number in (4, 1, 6, 0):
        place = StreamState.from_json(json.loads(json.dumps(blocks[number].start.as_json())))
        assert place == blocks[number].start
        again = other.read(place)
        assert as_ids(again.sequences) == as_ids(blocks[number].sequences)
        assert again.end == blocks[number].end


def test_every_row_of_a_pass_comes_once(tmp_path):
    rows = texts(20, seed=3)
    source = text_source(write_texts(tmp_path / "a.jsonl", rows))
    laid = sequences(block_reader([source], examples=10), 20)
    assert sorted(entry.origins[0][1] for entry in laid[:10]) == list(range(1, 11))
    assert sorted(entry.origins[0][1] for entry in laid[10:]) == list(range(11, 21))
    assert [entry.origins[0][1] for entry in laid] != list(range(1, 21))


def test_kept_order_is_the_order_of_the_file(tmp_path):
    source = text_source(write_texts(tmp_path / "a.jsonl", texts(20)))
    laid = sequences(block_reader([source], examples=6, keep_order=True), 30)
    assert [entry.origins[0][1] for entry in laid] == [*range(1, 21), *range(1, 11)]


def test_packs_are_those_of_the_best_fit(tmp_path):
    rows = texts(30, seed=5)
    source = text_source(write_texts(tmp_path / "a.jsonl", rows))
    reader = block_reader([source], examples=30, packed=True, sequence_len=128)
    block = reader.read(StreamState.beginning(1))
    ids = ids_of(rows)
    packs = pack_examples(np.array([*map(len, ids)]), max_tokens=128, seed=42, epoch=0)
    assert as_ids(block.sequences) == [[ids[place] for place in pack] for pack in packs]


def test_documents_are_joined_to_full_rows_by_hand():
    documents = [
        (document(1, 1, 1, 1, 9), (0, 1)),
        (document(2, 9), (0, 2)),
        (document(3, 9), (0, 3)),
    ]
    rows, carry = join_documents(documents, [], 4)
    assert as_ids(rows) == [[[1, 1, 1, 1]], [[9], [2, 9], [3]]]
    assert [entry.labels.tolist() for entry in rows[1].examples] == [
        [IGNORE_INDEX],
        [IGNORE_INDEX, 9],
        [IGNORE_INDEX],
    ]
    assert rows[1].origins == [(0, 1), (0, 2), (0, 3)]
    assert carry == ((0, 3, (9,)),)
    rows, carry = join_documents([(document(4, 4, 4), (0, 4))], carry, 4)
    assert as_ids(rows) == [[[9], [4, 4, 4]]]
    assert rows[0].origins == [(0, 3), (0, 4)]
    assert carry == ()


def test_joined_rows_lose_no_token(tmp_path):
    rows = texts(40, seed=7, longest=50)
    source = text_source(write_texts(tmp_path / "a.jsonl", rows), limit=1 << 30)
    reader = block_reader([source], examples=9, join=True, keep_order=True, sequence_len=32)
    ids = ids_of(rows)
    whole = [token for row in ids * 2 for token in row]
    laid = sequences(reader, len(whole) // 32)
    assert [token for row in as_ids(laid) for piece in row for token in piece] == whole[
        : 32 * len(laid)
    ]
    assert {sum(map(len, row)) for row in as_ids(laid)} == {32}


def test_a_block_smaller_than_a_row_is_carried_on(tmp_path):
    source = text_source(write_texts(tmp_path / "a.jsonl", texts(40, longest=3)), limit=1 << 30)
    reader = block_reader([source], examples=1, join=True, keep_order=True, sequence_len=64)
    first = reader.read(StreamState.beginning(1))
    assert not first.sequences
    assert first.end.carry
    assert {sum(map(len, row)) for row in as_ids(sequences(reader, 5))} == {64}


def test_documents_of_one_text_see_each_other(tmp_path):
    source = text_source(write_texts(tmp_path / "a.jsonl", texts(30)))
    apart = sequences(block_reader([source], packed=True), 4)
    together = sequences(block_reader([source], packed=True, isolated=False), 4)
    for left, right in zip(apart, together, strict=True):
        (example,) = right.examples
        assert example.input_ids.tolist() == [t for e in left.examples for t in e.input_ids]
        assert example.labels.tolist() == [IGNORE_INDEX, *example.input_ids.tolist()[1:]]


def test_a_closed_stream_reads_no_further(tmp_path):
    reader = two_sources(tmp_path)
    reader.stopped = lambda: True
    with pytest.raises(Stopped):
        reader.read(StreamState.beginning(2))
