"""A whole model's folder → one GGUF file, tensor by tensor, read back before it gets its name."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import (
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from newtune.errors import ExportError
from newtune.logs import notice
from newtune.outputs.export.families import Array, Family, family_of, header
from newtune.outputs.export.rope import rope_factors
from newtune.outputs.export.tokenizer import tokenizer_metadata
from newtune.outputs.shards import Checkpoint, weight_files
from newtune.outputs.staging import require_space, staging_folder

GgufDtype = Literal["f32", "f16", "bf16", "q8_0"]


@dataclass(frozen=True)
class Format:
    """How matrices are stored; norms, biases and rope factors are float32 always."""

    kind: GGMLQuantizationType
    file: LlamaFileType
    bound: float
    """Most that a value may be off, as a share of the largest one in its block (or of itself)."""
    block: int = 1


FORMATS: Mapping[GgufDtype, Format] = {
    "f32": Format(GGMLQuantizationType.F32, LlamaFileType.ALL_F32, 0.0),
    "f16": Format(GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16, 2.0**-11),
    "bf16": Format(GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16, 2.0**-8),
    # 127 steps to the largest of 32 values: half a step, and the step itself rounded to float16
    "q8_0": Format(GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0, 0.51 / 127 + 2.0**-11, 32),
}
SMALLEST_HALF = 2.0**-24
"""Of float16: below it, a difference is no fault."""


@dataclass(frozen=True)
class Exported:
    """A GGUF file that holds what the folder does."""

    file: Path
    architecture: str
    dtype: GgufDtype
    tensors: int
    size_bytes: int
    largest_difference: float
    """Of any value that was read back, as a share of the largest one in its block."""


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: where it comes from and how it is stored."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType


def export_gguf(folder: Path, file: Path, *, dtype: GgufDtype, name: str) -> Exported:
    """Write the model of `folder` to `file`; one tensor at a time is in memory.

    `name` is what the file calls the model.

    Raises:
        ExportError: a family or tokenizer that GGUF has no word for; weights that do not fit the
            dtype; what was read back is not what was written. There is no file then.
    """
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    family = family_of(text)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    checkpoint = Checkpoint(weight_files(folder))
    rows = _rows(checkpoint)
    tensors = list(_plan(checkpoint, family, text, FORMATS[dtype]))
    _say_what_is_lost(text)
    require_space(file.parent, sum(int(np.prod(_stored_shape(t))) * 4 for t in tensors))
    with staging_folder(file.parent) as stage:
        part = stage / file.name
        with closing(GGUFWriter(part, family.architecture)) as writer:
            _write_header(writer, family, text, tokenizer, rows, name=name, form=FORMATS[dtype])
            _write_tensors(writer, tensors, checkpoint, family, text)
        largest = read_back(part, tensors, checkpoint, family, text, FORMATS[dtype])
        part.replace(file)
    size = file.stat().st_size
    return Exported(file, family.architecture, dtype, len(tensors), size, largest)


def read_back(
    file: Path,
    tensors: list[_Tensor],
    checkpoint: Checkpoint,
    family: Family,
    config: PreTrainedConfig,
    form: Format,
) -> float:
    """Return the largest difference between the file and the folder.

    Raises:
        ExportError: it is larger than the dtype's.
    """
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    largest = 0.0
    for tensor in tensors:
        wanted = _value(tensor, checkpoint, family, config)
        found = dequantize(stored[tensor.name].data, stored[tensor.name].tensor_type)
        found = found.reshape(wanted.shape)
        exact = tensor.kind == GGMLQuantizationType.F32
        off = _largest_difference(wanted, found, 1 if exact else form.block)
        if not off <= (0.0 if exact else form.bound):
            raise ExportError(
                f"{tensor.name} was written and read back {off:.2g} off, as a share of its largest "
                f"value; in {form.kind.name} it may be {form.bound:.2g}. Try `--dtype f32`."
            )
        largest = max(largest, off)
    return largest


def _plan(
    checkpoint: Checkpoint, family: Family, config: PreTrainedConfig, form: Format
) -> Iterator[_Tensor]:
    names = get_tensor_name_map(_architecture(family), config.num_hidden_layers)
    for source, shape in checkpoint.shapes.items():
        if source.endswith(("rotary_emb.inv_freq", "masked_bias")):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"GGUF has no name for {source} of a {config.model_type}")
        if name == "output.weight" and config.tie_word_embeddings:
            continue
        yield _Tensor(name, source, shape, _kind(shape, form))
    for name, values in rope_factors(config).items():
        yield _Tensor(name, "", values.shape, GGMLQuantizationType.F32)


def _kind(shape: tuple[int, ...], form: Format) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return form.kind if shape[-1] % form.block == 0 else GGMLQuantizationType.F16


def _write_header(
    writer: GGUFWriter,
    family: Family,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    *,
    name: str,
    form: Format,
) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(int(form.file))
    writer.add_quantization_version(2)
    for key, value in header(family, config):
        _add(writer, f"{family.architecture}.{key}", value)
    for key, entry in tokenizer_metadata(tokenizer, rows):
        _add(writer, f"tokenizer.{key}", entry)


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    """Add a value in the type that readers look for: whole numbers have no sign."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_key_value(key, value, GGUFValueType.BOOL)
    elif isinstance(value, int):
        writer.add_key_value(key, value, GGUFValueType.UINT32)
    elif isinstance(value, float):
        writer.add_key_value(key, value, GGUFValueType.FLOAT32)
    else:
        writer.add_key_value(key, value, GGUFValueType.STRING)


def _write_tensors(
    writer: GGUFWriter,
    tensors: list[_Tensor],
    checkpoint: Checkpoint,
    family: Family,
    config: PreTrainedConfig,
) -> None:
    for tensor in tensors:
        shape = _stored_shape(tensor)
        size = int(np.prod(shape)) * _storage(tensor).itemsize
        writer.add_tensor_info(tensor.name, shape, _storage(tensor), size, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        value = _value(tensor, checkpoint, family, config)
        if not np.isfinite(value).all():
            raise ExportError(f"{tensor.source} holds NaN or infinite values")
        if tensor.kind == GGMLQuantizationType.F16 and np.abs(value).max() > np.finfo("f2").max:
            raise ExportError(f"{tensor.source} holds values too large for float16: take bf16")
        writer.write_tensor_data(quantize(np.ascontiguousarray(value), tensor.kind))


def _storage(tensor: _Tensor) -> np.dtype[np.generic]:
    """Return the type of array that gguf's `quantize` answers with."""
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    return np.dtype(plain.get(tensor.kind, np.uint8))


def _stored_shape(tensor: _Tensor) -> tuple[int, ...]:
    if _storage(tensor) == np.uint8:
        return quant_shape_to_byte_shape(tensor.shape, tensor.kind)
    return tensor.shape


def _value(
    tensor: _Tensor, checkpoint: Checkpoint, family: Family, config: PreTrainedConfig
) -> Array:
    if not tensor.source:
        return rope_factors(config)[tensor.name]
    weight: Array = checkpoint.read(tensor.source).float().numpy()
    return family.layout(tensor.source, weight, config)


def _largest_difference(wanted: Array, found: Array, block: int) -> float:
    """Return the largest difference as a share of the largest value in its block."""
    off = np.abs(wanted - found).reshape(-1, block).max(1)
    size = np.abs(wanted).reshape(-1, block).max(1)
    off = np.where(off <= SMALLEST_HALF, 0.0, off) if block == 1 else off
    return float(np.max(off / np.maximum(size, np.finfo(np.float32).tiny), initial=0.0))


def _architecture(family: Family) -> MODEL_ARCH:
    return next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == family.architecture)


def _rows(checkpoint: Checkpoint) -> int:
    return next(shape[0] for name, shape in checkpoint.shapes.items() if "embed_tokens" in name)


def _say_what_is_lost(config: PreTrainedConfig) -> None:
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral" and window and window < config.max_position_embeddings:
        notice(
            f"GGUF's llama architecture knows no sliding window: beyond {window} tokens its "
            "readers attend to more than this model was trained with"
        )
