"""Merge an adapter into its base shard by shard: no more than one shard is in memory.

PEFT's own layers do the arithmetic. They stand on the meta device over a base without weights;
one after the other gets its weights, takes the adapter in, is written, and is emptied again.
"""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from newtune.errors import ModelError
from newtune.model.adapters import MUTATING_INITS
from newtune.model.head import LoraOutputHead, OutputHead, head_name
from newtune.outputs.base_files import BaseFiles
from newtune.outputs.shards import NeedsWholeModel, ShardWriter
from newtune.plan.facts import Dtype

MOST_SHARD_BYTES = 2_000_000_000
"""Of a file that is written; with one widened layer beside it, the most that is in memory."""


def merge_shards(
    base: BaseFiles,
    adapter: Path,
    stage: Path,
    *,
    dtype: Dtype,
    adapter_dtype: Dtype = "float32",
    most_shard_bytes: int = MOST_SHARD_BYTES,
) -> PreTrainedModel:
    """Write base + adapter into an empty folder, with config; returns the model without weights.

    Each sum is taken in float32 and rounded once to `dtype`. `base.model` is used up.

    Raises:
        NeedsWholeModel: this adapter, or this base, cannot be taken layer by layer; files may
            have been written.
        ModelError: a sum is not finite.
    """
    model, config = base.model, LoraConfig.from_pretrained(str(adapter))
    _require_by_layer(config)
    trained = attach_empty(model, adapter, config, getattr(torch, adapter_dtype))
    tied_name = _tied_head(trained, config)
    writer = ShardWriter(stage, most_shard_bytes)
    for name, tensor in merged_tensors(trained, base, getattr(torch, dtype)):
        if name != tied_name:
            writer.add(name, tensor)
    writer.finish()
    _write_config(model, stage, dtype)
    return model


def attach_empty(
    model: PreTrainedModel, adapter: Path, config: LoraConfig, dtype: torch.dtype
) -> PeftModel:
    """Return the empty base with the adapter on it, the adapter's own weights in memory."""
    config._register_custom_module({OutputHead: LoraOutputHead})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each of them was answered when the base was loaded
        trained = PeftModel.from_pretrained(
            model, str(adapter), config=config, low_cpu_mem_usage=True
        )
        _load_adapter(trained, load_peft_weights(str(adapter), device="cpu"))
    for parameter in trained.parameters():
        if not parameter.is_meta:
            parameter.data = parameter.data.to(dtype)
    return trained


def _load_adapter(trained: PeftModel, weights: dict[str, Tensor]) -> None:
    """Load the adapter's weights onto the CPU: PEFT puts them where the base is, so nowhere.

    The names in its file are PEFT's own: those that it would save these parameters by.
    """
    parameters = dict(trained.state_dict(keep_vars=True))
    saved = get_peft_model_state_dict(
        trained, state_dict=dict(parameters), save_embedding_layers=False
    )
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = {names[id(value)]: weights[name] for name, value in saved.items() if name in weights}
    if len(found) != len(weights):
        raise NeedsWholeModel("the adapter's file names its weights in another way")
    trained.load_state_dict(found, strict=False, assign=True)


def merged_tensors(
    trained: PeftModel, base: BaseFiles, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the merged model, name and value, in the order of the base's files."""
    model = trained.get_base_model()
    layers = dict(_adapted_layers(model))
    layer_of = {
        name: path
        for path in layers
        for name in (*base.names, *base.converted)
        if name.startswith(f"{path}.")
    }
    converted = sorted(base.converted & layer_of.keys())
    if converted:
        raise NeedsWholeModel(f"{converted[0]} is adapted, and put together when it is loaded")
    own = {
        name: value for name, value in model.named_parameters() if not value.is_meta
    }  # biases that the adapter brings
    done: set[str] = set()
    for name in (*base.names, *base.passed_on):
        path = layer_of.get(name)
        if path is None:
            tensor = own[name] if name in own else base.read(name)
            yield name, tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        elif path not in done:
            done.add(path)
            yield from _merged_layer(path, layers[path], base, dtype)


def _merged_layer(
    path: str, layer: nn.Module, base: BaseFiles, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    plain = _plain(layer)
    if any(isinstance(module, BaseTunerLayer) for module in plain.modules()):
        raise NeedsWholeModel(f"{path} holds one adapted layer inside another")
    _fill(plain, path, base)
    if isinstance(layer, BaseTunerLayer) and any(value.is_meta for value in layer.parameters()):
        raise NeedsWholeModel(f"the adapter's file does not hold all that {path} needs")
    plain.to(torch.float32)
    for module in list(layer.modules()):
        if isinstance(module, BaseTunerLayer):
            try:
                module.merge(safe_merge=True)
            except (ValueError, RuntimeError) as error:
                raise ModelError(f"the adapter cannot be merged: {error}") from error
    for name, tensor in list(plain.state_dict().items()):
        yield f"{path}.{name}", tensor.detach().to(dtype)
    plain.to("meta")


def _fill(plain: nn.Module, path: str, base: BaseFiles) -> None:
    """Give a layer its base weights; what the adapter file brought stays."""
    for name, parameter in list(plain.named_parameters()):
        if not parameter.is_meta:
            continue
        owner, _, leaf = name.rpartition(".")
        value = nn.Parameter(base.read(f"{path}.{name}"), requires_grad=False)
        setattr(plain.get_submodule(owner), leaf, value)


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the outermost layers that PEFT put around others."""
    above = ""
    for name, module in model.named_modules():
        if above and name.startswith(above):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            above = f"{name}."
            yield name, module


def _plain(layer: nn.Module) -> nn.Module:
    """Return the layer that will stand in the merged model."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return layer.unload_and_optionally_merge_module(
            merge=False, safe_merge=False, adapter_names=None
        )
    return cast("BaseTunerLayer", layer).get_base_layer()


def _require_by_layer(config: LoraConfig) -> None:
    init = config.init_lora_weights
    if isinstance(init, str) and init.startswith(MUTATING_INITS):
        raise NeedsWholeModel(f"`{init}` changed the base weights when the training began")


def _tied_head(trained: PeftModel, config: LoraConfig) -> str | None:
    """Return the name of the head's weight where it is the embeddings', else None.

    The model's config is untied where the adapter set the two apart.
    """
    model = cast("PreTrainedModel", trained.get_base_model())
    if not model.config.get_text_config().tie_word_embeddings:
        return None
    embedding: nn.Module = model.get_input_embeddings()
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    name = f"{head_name(model)}.weight"
    apart = isinstance(embedding, LoraLayer) or isinstance(head, LoraLayer)
    saved = [_saved_weight(module) for module in (embedding, head)]
    if any(weight is not None for weight in saved):
        if config.ensure_weight_tying:
            _share_saved(embedding, head)
        else:
            one, other = saved
            apart = apart or one is None or other is None or not torch.equal(one, other)
    if apart:
        model.config.tie_word_embeddings = False
        return None
    return name


def _saved_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a layer trained whole that the adapter file holds."""
    if not isinstance(module, ModulesToSaveWrapper):
        return None
    weight = _plain(module).get_parameter("weight")
    return None if weight.is_meta else weight


def _share_saved(embedding: nn.Module, head: nn.Module) -> None:
    """The file holds tied weights once, under either name."""
    one, other = _saved_weight(embedding), _saved_weight(head)
    found = one if one is not None else other
    for module in (embedding, head):
        if isinstance(module, ModulesToSaveWrapper):
            _plain(module).weight = nn.Parameter(cast("Tensor", found), requires_grad=False)


def _write_config(model: PreTrainedModel, stage: Path, dtype: Dtype) -> None:
    config: Any = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(stage)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(stage)
