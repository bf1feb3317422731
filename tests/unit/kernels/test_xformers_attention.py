"""What xformers is told about packed examples is what our own attention keeps apart."""

import pytest
import torch

from newtune.errors import ModelError
from newtune.kernels.packed_attention import first_keys_of, packed_attention, visible_keys
from newtune.kernels.xformers_attention import block_bias, blocks, xformers_attention


def first_keys(*rows: list[int], window: int | None = None) -> torch.Tensor:
    """Rows of example lengths."""
    starts = torch.zeros(len(rows), sum(rows[0]), dtype=torch.bool)
    for row, lengths in enumerate(rows):
        starts[row, torch.tensor([0, *lengths[:-1]]).cumsum(0)] = True
    return first_keys_of(starts, window=window)


def test_blocks_are_the_examples_of_all_rows_and_their_window() -> None:
    assert blocks(first_keys([3, 2])) == ([3, 2], None)
    assert blocks(first_keys([3, 1, 4], [1, 5, 2])) == ([3, 1, 4, 1, 5, 2], None)
    assert blocks(first_keys([3, 1, 4], [1, 5, 2], window=2)) == ([3, 1, 4, 1, 5, 2], 2)
    assert blocks(first_keys([3, 2], window=9)) == ([3, 2], None)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("rows", [([5],), ([3, 2],), ([3, 1, 4], [1, 5, 2])])
def test_the_bias_shows_what_the_mask_shows(rows: tuple[list[int], ...], window: int) -> None:
    pytest.importorskip("xformers.ops")
    keys = first_keys(*rows, window=window)
    total = keys.numel()
    seen = block_bias(keys).materialize((total, total)) == 0
    assert torch.equal(seen, torch.block_diag(*visible_keys(keys)).bool())


def test_capped_scores_are_refused() -> None:
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ModelError, match="cannot cap scores"):
        xformers_attention(query, query, query, first_keys([3]), softcap=2.0)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_it_computes_what_our_own_attention_computes(window: int | None) -> None:
    keys = first_keys([3, 1, 12], [1, 9, 6], window=window).cuda()
    shape = {"device": "cuda", "dtype": torch.bfloat16}
    query, key = torch.randn(2, 4, 16, 64, **shape), torch.randn(2, 2, 16, 64, **shape)
    ours = packed_attention(query, key, key, keys)
    torch.testing.assert_close(
        xformers_attention(query, key, key, keys), ours, rtol=2e-2, atol=2e-2
    )
