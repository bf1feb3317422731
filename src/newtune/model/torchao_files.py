"""Which layers of a checkpoint torchao packed, and how: read off the files, without its weights."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from safetensors import safe_open
from torch import Tensor

from newtune.errors import ModelError

CODES, SCALES, ZEROS = "_weight_qdata", "_weight_scale", "_weight_zero_point"
"""What the files have of a layer instead of its weight; zeros are not always there."""

DTYPES: Mapping[str, torch.dtype] = {
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""safetensors' names of what codes, scales and zeros may be stored in."""


def packed_layers(
    files: Sequence[str], linear: Mapping[str, tuple[int, int]], *, prefix: str
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield name and empty buffers of each linear layer (name → out, in) that is packed.

    `prefix`: what files of a bare decoder lack of the names.

    Raises:
        ModelError: nothing is packed, or in a form that is not read here.
    """
    stored = _headers(files)
    found = False
    for layer, shape in linear.items():
        in_files = next((n for n in (layer, layer.removeprefix(prefix)) if _has(stored, n)), None)
        if in_files is not None:
            found = True
            yield layer, _buffers(in_files, shape, stored)
    if not found:
        raise ModelError(
            "nothing of this checkpoint is packed as torchao does it: its files "
            f"({', '.join(file.rpartition('/')[2] for file in files[:3])}) hold no `{CODES}` of a "
            "linear layer. Save it as safetensors with torchao 0.18, or give the checkpoint that "
            "is not quantised."
        )


def _has(stored: Mapping[str, Tensor], layer: str) -> bool:
    return f"{layer}.{CODES}" in stored


def _buffers(layer: str, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [end for end in (CODES, SCALES, ZEROS) if f"{layer}.{end}" in stored]
    buffers = {end: stored[f"{layer}.{end}"] for end in names}
    codes, scales = buffers[CODES], buffers.get(SCALES)
    plain = tuple(codes.shape) == shape and scales is not None and scales.ndim == 2
    if not plain:
        raise ModelError(
            f"{layer}: its codes are stored as {tuple(codes.shape)} {codes.dtype}, not one by one "
            f"as {shape}. newtune reads torchao's plain forms alone."
        )
    return buffers


def _headers(files: Sequence[str]) -> dict[str, Tensor]:
    """Return empty tensors for what newtune knows the format of, by the names in the files."""
    stored: dict[str, Tensor] = {}
    for path in files:
        if not path.endswith(".safetensors"):
            continue
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                part = file.get_slice(name)
                dtype = DTYPES.get(part.get_dtype())
                if dtype is not None:
                    stored[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return stored
