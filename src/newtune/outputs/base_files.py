"""A base model without its weights, and each weight as the training saw it when it is asked for.

The model stands on the `meta` device: it has every name, shape and layer type, and no memory.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from newtune.model.facts import build_from_config, model_builder, read_config
from newtune.model.head import head_name, install_head
from newtune.model.load import grow_embeddings
from newtune.model.quantization import with_ordinary_layers
from newtune.model.sources import find_source
from newtune.outputs.packed_files import (
    LAYOUTS,
    UnpackedCheckpoint,
    open_checkpoint,
    require_upright,
)
from newtune.outputs.quantized_files import quantized_reader
from newtune.outputs.shards import Checkpoint, NeedsWholeModel, weight_files
from newtune.plan.parts import ModelPlan

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class BaseFiles:
    """What there is to know of a base before its weights are read."""

    model: PreTrainedModel
    """On the meta device, embeddings grown, with newtune's output head."""
    names: tuple[str, ...]
    """Of the tensors that a checkpoint of this model holds, in the order of the base's files."""
    read: Read
    """Name → tensor in the format of the frozen weights, on the CPU."""
    converted: frozenset[str] = frozenset()
    """Of the model's tensors, those that loading puts together from others (fused experts)."""
    passed_on: tuple[str, ...] = ()
    """Names in the files of those others: what is not adapted is written as it was."""


def open_base(plan: ModelPlan, tokenizer: PreTrainedTokenizerBase) -> BaseFiles:
    """Return the base of a run; its files are in place already, or come from the hub's cache.

    Raises:
        NeedsWholeModel: its files hold the weights in another form than the model does.
    """
    checkpoint = open_checkpoint(Checkpoint(_files(plan)), plan.quantization)
    model = empty_model(plan)
    if isinstance(checkpoint, UnpackedCheckpoint):
        require_upright(model)
    stored = _stored_names(model, checkpoint)
    grown = _grow(model, len(tokenizer), plan.embedding_multiple)
    read = frozen_reader(model, checkpoint, plan)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    source = {name: stored.get(name) for name in shapes}
    _tie(model, source)
    names = {name: found for name, found in source.items() if found is not None}
    converted = frozenset(shapes) - frozenset(names)
    others = [name for name in checkpoint.shapes if name not in set(names.values())]
    if converted and plan.quantization is not None:
        raise NeedsWholeModel("its files hold other tensors than the quantised model")

    def read_named(name: str) -> Tensor:
        tensor = read(names.get(name, name))
        if name not in shapes:
            return tensor
        if tuple(tensor.shape) == shapes[name]:
            return tensor
        if name not in grown or tensor.shape[1:] != shapes[name][1:]:
            raise NeedsWholeModel(
                f"{name} is stored as {tuple(tensor.shape)}, not as {shapes[name]}"
            )
        return _with_mean_rows(tensor, shapes[name][0])

    order = {name: place for place, name in enumerate(checkpoint.shapes)}
    in_order = sorted(names, key=lambda name: order.get(names[name], -1))
    passed_on = tuple(others) if converted else ()
    return BaseFiles(model, tuple(in_order), read_named, converted, passed_on)


def empty_model(plan: ModelPlan) -> PreTrainedModel:
    """Return the base's architecture on the meta device.

    Raises:
        NeedsWholeModel: its code comes with the checkpoint; weights quantised in a way that is
            not read here.
    """
    if plan.trust_remote_code:
        raise NeedsWholeModel("its code comes with the checkpoint")
    config = read_config(
        plan.config_source,
        revision=plan.revision if plan.config_source == plan.source else None,
        trust_remote_code=False,
        overrides=plan.config_overrides,
    )
    stored = getattr(config, "quantization_config", None)
    if stored is not None:
        method = stored["quant_method"]
        if plan.quantization is None or method not in ("bitsandbytes", *LAYOUTS):
            raise NeedsWholeModel(f"its files hold weights quantised by {method}")
        del config.quantization_config
    dtype = getattr(torch, plan.precision.frozen_weights)
    with torch.device("meta"):
        model = build_from_config(model_builder(plan.model_class), config, dtype=dtype)
    model.generation_config = _generation_config(plan) or model.generation_config
    return model


def frozen_reader(model: PreTrainedModel, checkpoint: Checkpoint, plan: ModelPlan) -> Read:
    """Return how to read a stored tensor as the training saw it: rounded, or quantised and back."""
    dtype = getattr(torch, plan.precision.frozen_weights)
    read: Read = checkpoint.read
    if plan.quantization is not None and plan.quantization.method == "bitsandbytes":
        with with_ordinary_layers():
            layers = empty_model(plan)
        read = quantized_reader(layers, checkpoint, plan.quantization, plan.device)
    exact = checkpoint.layers if isinstance(checkpoint, UnpackedCheckpoint) else {}
    kept = _kept_in_float32(model)

    def read_frozen(name: str) -> Tensor:
        tensor = read(name)
        if not tensor.is_floating_point():
            return tensor
        wanted = torch.float32 if kept is not None and kept.search(name) else dtype
        if name in exact:  # of float16, which bfloat16 would round
            wanted = torch.promote_types(tensor.dtype, wanted)
        return tensor.to("cpu", wanted)

    return read_frozen


def _files(plan: ModelPlan) -> list[Path]:
    source = find_source(plan.source)
    if source.gguf_file is not None:
        raise NeedsWholeModel("it is a GGUF file")
    folder = Path(source.name)
    if not source.is_local:
        folder = Path(
            snapshot_download(
                source.name,
                revision=plan.revision,
                allow_patterns=["model*.safetensors", "model.safetensors.index.json"],
                ignore_patterns=list(plan.ignore_patterns) or None,
            )
        )
    files = weight_files(folder)
    if not files:
        raise NeedsWholeModel("its weights are no model*.safetensors")
    return files


def _stored_names(model: PreTrainedModel, checkpoint: Checkpoint) -> Mapping[str, str]:
    """Return the model's name of a tensor → its name in the files.

    Files of a bare decoder lack the prefix that the language model gives its names.
    """
    wanted = set(model.state_dict())
    prefix = f"{model.base_model_prefix}."
    names = {}
    for name in checkpoint.shapes:
        full = name if name in wanted else f"{prefix}{name}"
        if full in wanted:
            names[full] = name
    return names


def _grow(model: PreTrainedModel, tokens: int, multiple: int | None) -> frozenset[str]:
    """Grow the embeddings as the training did; returns the names of what may have grown."""
    grow_embeddings(model, tokens, multiple=multiple)
    install_head(model)
    embeddings = model.get_input_embeddings()
    name = next(str(n) for n, module in model.named_modules() if module is embeddings)
    head = head_name(model)
    return frozenset({f"{name}.weight", f"{head}.weight", f"{head}.bias"})


def _tie(model: PreTrainedModel, source: dict[str, str | None]) -> None:
    """Let every parameter of a tied model be read from where any of its names is stored."""
    if not model.config.get_text_config().tie_word_embeddings:
        return
    embeddings: nn.Module = model.get_input_embeddings()
    name = next(n for n, module in model.named_modules() if module is embeddings)
    head = head_name(model)
    one, other = f"{name}.weight", f"{head}.weight"
    found = source[one] or source[other]
    source[one] = source[other] = found
    if f"{head}.bias" in source and source[f"{head}.bias"] is None:
        raise NeedsWholeModel("its output head has a bias that is stored elsewhere")


def _with_mean_rows(tensor: Tensor, rows: int) -> Tensor:
    """Return the tensor with new rows at its end, as `grow_embeddings` fills them."""
    known = len(tensor)
    grown = tensor.new_empty((rows, *tensor.shape[1:]))
    grown[:known] = tensor
    grown[known:] = tensor.float().mean(0)
    return grown


def _kept_in_float32(model: PreTrainedModel) -> re.Pattern[str] | None:
    """Return what the family keeps in float32 whatever dtype is asked for."""
    kept = {*(model._keep_in_fp32_modules_strict or ())}
    if model.dtype == torch.float16:
        kept |= {*(model._keep_in_fp32_modules or ())}
    if not kept:
        return None
    return re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:$|\.)" for name in kept))


def _generation_config(plan: ModelPlan) -> GenerationConfig | None:
    try:
        loaded: GenerationConfig = GenerationConfig.from_pretrained(
            plan.config_source,
            revision=(plan.revision if plan.config_source == plan.source else None) or "main",
        )
    except OSError:
        return None
    return loaded
