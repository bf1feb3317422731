"""Packed weights → the weights that they stand for, number by number as their makers do."""

import torch
from jaxtyping import Float, Float16, Int32, Num
from torch import Tensor


def unpack_gptq(
    qweight: Int32[Tensor, "words out"],
    qzeros: Int32[Tensor, "groups out_words"],
    scales: Float16[Tensor, "groups out"],
    g_idx: Int32[Tensor, " in"],
    *,
    bits: int,
    zeros_less_one: bool,
) -> Float16[Tensor, "out in"]:
    """Return scale × (code - zero) in float16; `g_idx` is the group of each input.

    Codes are packed along the inputs and zeros along the outputs, the first one lowest.
    `zeros_less_one`: GPTQ's first format, which stores each zero less one.
    """
    codes = _codes(qweight.T, bits).T
    zeros = _codes(qzeros, bits) + int(zeros_less_one)
    groups = g_idx.long()
    return (scales[groups] * (codes - zeros[groups])).T.contiguous()


AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word, counted from its lowest bits, each of eight columns lies."""


def unpack_awq(
    qweight: Int32[Tensor, "in words"],
    qzeros: Int32[Tensor, "groups words"],
    scales: Float16[Tensor, "groups out"],
) -> Float16[Tensor, "out in"]:
    """Return scale × (code - zero) in float16, of AWQ's `gemm` format in 4 bit.

    Codes and zeros are packed along the outputs; inputs of a group are neighbours.
    """
    groups = len(scales)
    codes, zeros = _awq_codes(qweight), _awq_codes(qzeros)
    grouped = codes.reshape(groups, -1, codes.shape[1]) - zeros[:, None]
    weight: Tensor = (scales[:, None] * grouped).reshape(codes.shape).T
    return weight.contiguous()


def _awq_codes(words: Int32[Tensor, "rows words"]) -> Int32[Tensor, "rows codes"]:
    places = torch.tensor(AWQ_PLACES, device=words.device)
    columns = _codes(words, 4).reshape(len(words), -1, len(AWQ_PLACES))
    return columns[:, :, places].flatten(1)


def unpack_torchao(
    codes: Num[Tensor, "out in"],
    scales: Float[Tensor, "rows columns"],
    zeros: Num[Tensor, "rows columns"] | None = None,
    *,
    kind: torch.dtype | None = None,
) -> Float[Tensor, "out in"]:
    """Return scale × (code - zero) in the format of the scales, of codes of 8 bit each.

    The weight is cut into as many equal blocks as there are scales, in rows and columns. `kind`:
    what the bytes of the codes are, where they are held as bytes.
    """
    if kind is not None:
        codes = codes.view(kind)
    (rows, columns), (height, width) = scales.shape, codes.shape
    blocks = codes.to(scales.dtype).reshape(rows, height // rows, columns, width // columns)
    if zeros is not None:
        blocks = blocks - zeros.to(scales.dtype)[:, None, :, None]
    weight: Tensor = blocks * scales[:, None, :, None]
    return weight.reshape(height, width)


def _codes(words: Int32[Tensor, "rows words"], bits: int) -> Int32[Tensor, "rows codes"]:
    """Return the numbers of `bits` bits that each word holds, its lowest first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    codes = (words[:, :, None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1)
