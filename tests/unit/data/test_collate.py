"""The layout of a batch, checked number by number."""

import numpy as np

from newtune.data.collate import collate
from newtune.types import Example


def example(*ids: int) -> Example:
    array = np.array(ids, dtype=np.int32)
    return Example(array, array)


PACKS = [[example(1, 2, 3), example(4, 5)], [example(6, 7, 8)]]


def test_packs_become_rows_padded_at_the_right_by_an_example_of_its_own():
    batch = collate(PACKS, pad_id=0, pad_to=None, flatten=False)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5], [-100, 7, 8, -100, -100]]
    assert set(batch) == {"input_ids", "position_ids", "labels"}


def test_flattened_packs_become_one_row_with_boundaries():
    batch = collate(PACKS, pad_id=0, pad_to=None, flatten=True)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 8]
    assert batch["max_length_q"] == batch["max_length_k"] == 3


def test_padding_to_a_length_counts_per_pack():
    rows = collate(PACKS, pad_id=0, pad_to=6, flatten=False)
    assert rows["input_ids"].shape == (2, 6)
    flat = collate(PACKS, pad_id=9, pad_to=6, flatten=True)
    assert flat["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 2, 3]]
    assert flat["cu_seq_lens_q"].tolist() == [0, 3, 5, 8, 12]
    assert flat["max_length_q"] == 4


def test_the_length_is_rounded_up_to_a_multiple():
    rows = collate(PACKS, pad_id=0, pad_to=None, flatten=False, multiple_of=4)
    assert rows["input_ids"].shape == (2, 8)
    flat = collate(PACKS, pad_id=0, pad_to=None, flatten=True, multiple_of=6)
    assert flat["input_ids"].shape == (1, 12)
    assert flat["cu_seq_lens_q"].tolist() == [0, 3, 5, 8, 12]
    both = collate(PACKS, pad_id=0, pad_to=6, flatten=False, multiple_of=4)
    assert both["input_ids"].shape == (2, 8)


def test_a_single_row_has_boundaries_too():
    batch = collate(PACKS[:1], pad_id=0, pad_to=None, flatten=False)
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]
