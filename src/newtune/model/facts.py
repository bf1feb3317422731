"""A checkpoint's configuration: read, and counted."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from newtune.hub import HubError
from newtune.model.classes import library_class
from newtune.model.head import head_name, takes_positions
from newtune.model.overrides import override_config
from newtune.model.peft_names import taken_for_experts
from newtune.model.sources import cannot_load, find_source
from newtune.model.stored_names import stored_names
from newtune.plan.facts import Dtype, ModelFacts

ROUTERS = ("Router", "TopKGating", "MoEV1Gate")
"""How classes of transformers are called at their end that choose experts."""
_DTYPES: Mapping[Any, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def read_model_facts(
    source: str,
    *,
    config_source: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    model_class: str = "AutoModelForCausalLM",
    config_overrides: Mapping[str, Any] | None = None,
) -> ModelFacts:
    """Return what the checkpoint's config alone tells; no weights are read.

    Raises:
        ModelError: the config cannot be read.
        ConfigError: an override that does not fit it.
        SetupError: a GGUF file without the package that reads it.
    """
    config = read_config(
        config_source or source,
        revision=revision if config_source in (None, source) else None,
        trust_remote_code=trust_remote_code,
        overrides=config_overrides or {},
    )
    builder = model_builder(model_class)
    model = build_on_meta(builder, config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return ModelFacts(
        model_type=text.model_type,
        architecture=type(model).__name__,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_positions=_max_positions(text),
        # A GGUF file's weights have a format of their own, whatever its config is read as.
        checkpoint_dtype=None if source.endswith(".gguf") else _DTYPES.get(config.dtype),
        linear_modules=_linear_modules(model),
        head_name=head_name(model),
        parameter_shapes=shapes,
        tied_embeddings=bool(text.tie_word_embeddings),
        stored_quantized=_stored_quantized(config),
        layer_kinds=frozenset(text.to_dict().get("layer_types") or ()),
        stateful=bool(model._is_stateful),
        takes_positions=takes_positions(model),
        attentions=_attentions(model),
        tensor_plan=dict(model.tp_plan),
        rotary_kinds=_rotary_kinds(text),
        routers=_routers(model),
        taken_for_experts=taken_for_experts(model),
        stored_names=stored_names(model),
        **_heads(text),
    )


def read_skeleton(
    source: str,
    *,
    config_source: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    model_class: str = "AutoModelForCausalLM",
    config_overrides: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Return the model without weights; arguments and errors as of `read_model_facts`."""
    config = read_config(
        config_source or source,
        revision=revision if config_source in (None, source) else None,
        trust_remote_code=trust_remote_code,
        overrides=config_overrides or {},
    )
    builder = model_builder(model_class)
    return build_on_meta(builder, config, trust_remote_code=trust_remote_code)


def build_on_meta(
    builder: Any, config: PreTrainedConfig, *, trust_remote_code: bool
) -> PreTrainedModel:
    """Return the model without weights: names, shapes and layers."""
    with torch.device("meta"):
        return build_from_config(builder, config, trust_remote_code=trust_remote_code)


def build_from_config(
    builder: Any, config: PreTrainedConfig, *, trust_remote_code: bool = False, **arguments: Any
) -> PreTrainedModel:
    """Return a new model of that configuration, by a model's class or by an `AutoModel`."""
    # _from_config: the door that AutoModel's from_config uses itself
    model: PreTrainedModel = (
        builder._from_config(config, **arguments)
        if issubclass(builder, PreTrainedModel)
        else builder.from_config(config, trust_remote_code=trust_remote_code, **arguments)
    )
    return model


def read_config(
    source: str, *, revision: str | None, trust_remote_code: bool, overrides: Mapping[str, Any]
) -> PreTrainedConfig:
    """Return the model's configuration with the overrides merged in."""
    found = find_source(source)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            found.name,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            **found.arguments,
        )
    except (HubError, OSError, ValueError, KeyError) as error:
        what = "configuration (config.json)"
        raise cannot_load(source, what, error, revision=revision) from error
    if config.model_type == "rwkv":
        # In evaluation it would halve its weights in place, for float16's sake: those of an adapter
        # would stay, quantised ones cannot, and what is saved after an evaluation would be halved.
        config.rescale_every = 0
    return override_config(config, overrides)


def model_builder(model_class: str) -> Any:
    """Return the transformers class of that name.

    Raises:
        ModelError: transformers has no such class.
    """
    return library_class("model_type", model_class, like="ForCausalLM")


def _attentions(model: PreTrainedModel) -> frozenset[str]:
    can = {
        "sdpa": model._supports_sdpa,
        "flash_attention": model._supports_flash_attn,
        "flex_attention": model._supports_flex_attn,
        "own": model._supports_attention_backend,
    }
    return frozenset(name for name, able in can.items() if able)


def _stored_quantized(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    return stored if isinstance(stored, dict) else dict(stored.to_dict())


def _max_positions(config: PreTrainedConfig) -> int | None:
    """Return the longest trained sequence; a scaling multiplies it or is in it already.

    llama3, yarn and longrope configs name the length before scaling beside the scaled one.
    """
    values = config.to_dict()
    positions = values.get("max_position_embeddings") or values.get("n_positions")
    if positions is None:
        return None
    rope = values.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    factor = rope.get("factor") or 1.0
    original = rope.get("original_max_position_embeddings")
    scaled = (original or positions) * factor
    return max(int(positions), int(scaled))


def _heads(config: PreTrainedConfig) -> dict[str, int | None]:
    values = config.to_dict()
    heads = values.get("num_attention_heads") or values.get("n_head")
    return {"heads": heads, "key_heads": values.get("num_key_value_heads") or heads}


def _rotary_kinds(config: PreTrainedConfig) -> frozenset[str]:
    rope = config.to_dict().get("rope_parameters") or {}
    by_layer = [inner for inner in rope.values() if isinstance(inner, Mapping)]
    return frozenset(str(r["rope_type"]) for r in (rope, *by_layer) if "rope_type" in r)


def _linear_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    modules = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            modules[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            modules[name] = (module.nx, module.nf)
    return modules


def _routers(model: nn.Module) -> dict[str, bool]:
    """Return the layers that are, or belong to, a module that chooses experts.

    One that is a linear layer itself returns its choice besides, which a LoRA cannot be added to.
    """
    return {
        ".".join(filter(None, (name, inner))): layer is not module
        or not isinstance(layer, nn.Linear)
        for name, module in model.named_modules()
        if type(module).__name__.endswith(ROUTERS)
        for inner, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or "weight" in dict(layer.named_parameters(recurse=False))
    }
