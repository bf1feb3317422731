"""Lay packs of examples out as the tensors of one forward (the contract is `types.Batch`)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from newtune.types import IGNORE_INDEX, Batch, Example

Pack = Sequence[Example]
Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[int]]


def collate(
    packs: Sequence[Pack],
    *,
    pad_id: int,
    pad_to: int | None,
    flatten: bool,
    multiple_of: int | None = None,
) -> Batch:
    """Return one batch: a sequence per pack, or with `flatten` all packs in one sequence.

    `pad_to` is the length of a pack's sequence (with `flatten`: the whole has `pad_to` for each
    pack); None pads to the longest. The result's length is a multiple of `multiple_of`. The first
    token of an example is never trained, because nothing of its own example predicts it.

        positions of two packed examples and padding: [0 1 2 | 0 1 | 0 1 2]
    """
    if flatten:
        pad_to = pad_to and pad_to * len(packs)
        packs = [[example for pack in packs for example in pack]]
    longest = max(sum(len(example.input_ids) for example in pack) for pack in packs)
    length = max(longest, pad_to or 0)
    if multiple_of:
        length = -(-length // multiple_of) * multiple_of
    rows = [_lay_out(pack, length, pad_id) for pack in packs]
    batch = Batch(
        input_ids=torch.from_numpy(np.stack([row[0] for row in rows])),
        labels=torch.from_numpy(np.stack([row[1] for row in rows])),
        position_ids=torch.from_numpy(np.stack([row[2] for row in rows])),
    )
    if len(rows) == 1:
        _add_boundaries(batch, rows[0][3])
    return batch


def _lay_out(pack: Pack, length: int, pad_id: int) -> Row:
    input_ids = np.full(length, pad_id, dtype=np.int64)
    labels = np.full(length, IGNORE_INDEX, dtype=np.int64)
    positions = np.empty(length, dtype=np.int64)
    lengths: list[int] = []
    start = 0
    for example in pack:
        end = start + len(example.input_ids)
        input_ids[start:end] = example.input_ids
        labels[start:end] = example.labels
        labels[start : start + 1] = IGNORE_INDEX
        positions[start:end] = np.arange(end - start)
        lengths.append(end - start)
        start = end
    if start < length:
        positions[start:] = np.arange(length - start)
        lengths.append(length - start)
    return input_ids, labels, positions, lengths


def _add_boundaries(batch: Batch, lengths: list[int]) -> None:
    boundaries = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = boundaries
    batch["max_length_q"] = batch["max_length_k"] = max(lengths)
