"""ModelPlan and AdapterPlan → a model ready to train."""

import pickle
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from newtune.errors import ModelError
from newtune.hub import HubError
from newtune.logs import notice
from newtune.model import hub_files
from newtune.model.adapters import attach_adapter
from newtune.model.angles import angles_by_example
from newtune.model.attention import register_attention
from newtune.model.facts import build_from_config, model_builder, read_config, read_model_facts
from newtune.model.head import base_model, head_name, install_head
from newtune.model.loftq import repair_quantization
from newtune.model.placement import bring_in_place, placed_loading
from newtune.model.quantization import (
    knowing,
    plain,
    quantized_loading,
    rebuilt,
    settle,
    with_ordinary_layers,
)
from newtune.model.self_check import require_isolation, require_own_loss
from newtune.model.sources import Source, cannot_load, choose_weights, find_source
from newtune.plan.attention import RUNS_ON_CPU
from newtune.plan.parts import AdapterPlan, ModelPlan
from newtune.plan.unfrozen import is_unfrozen

__all__ = ["load_base", "load_model", "read_model_facts"]


def load_model(
    plan: ModelPlan,
    adapter: AdapterPlan | None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    new_token_ids: Sequence[int] | None = None,
    empty: bool = False,
) -> PreTrainedModel | PeftModel:
    """Return the model on its device, in its number formats, with what trains marked.

    `new_token_ids`: tokens whose embedding rows an adapter trains besides (`new_token_ids` of
    `model/tokenizer.py`); None = those that the checkpoint has no row for. With `empty`, no weights
    are read: parameters are on the meta device, until another process hands them out.

    Raises:
        ModelError: weights missing, partial or unsafe; an adapter that fits no module.
    """
    trained = adapter is None and not plan.unfrozen_parameters
    base = empty_base(plan, trained=trained) if empty else load_base(plan, trained=trained)
    known = _embeddings(base).shape[0]
    grow_embeddings(base, len(tokenizer), multiple=plan.embedding_multiple)
    install_head(base)
    angles_by_example(base)
    model: PreTrainedModel | PeftModel = base
    if adapter is None:
        unfreeze(base, plan.unfrozen_parameters)
    else:
        new = range(known, len(tokenizer)) if new_token_ids is None else new_token_ids
        if new:
            _say_which_rows(adapter, new)
        base.requires_grad_(requires_grad=False)
        model = attach_adapter(base, adapter, new_token_ids=list(new))
        model.peft_config["default"].revision = plan.revision
        if adapter.repairs_quantization:
            _repair_quantization(model, plan)
    store_trained_as(model, getattr(torch, plan.precision.trained_weights))
    if not empty:
        bring_in_place(model, plan)
    if plan.gradient_checkpointing:
        checkpoint_layers(model, dict(plan.gradient_checkpointing_kwargs))
    model.train()
    if not empty:
        _check_itself(model, plan)
    return model


def _check_itself(model: PreTrainedModel | PeftModel, plan: ModelPlan) -> None:
    if plan.device == "cpu" and plan.attention not in RUNS_ON_CPU:
        notice(
            "the loss and the isolation of packed examples were not measured on this model: "
            f"`{plan.attention}` needs a GPU, and the model goes there in parts"
        )
        return
    autocast = getattr(torch, plan.precision.autocast) if plan.precision.autocast else None
    require_own_loss(model, autocast=autocast)
    if plan.packed:
        require_isolation(model, autocast=autocast)


def _repair_quantization(model: PeftModel, plan: ModelPlan) -> None:
    if plan.quantization is None or plan.quantization.stored:
        raise ModelError(
            f"peft.loftq_config: {plan.source} is stored quantised: what that took away is not "
            "known. Give the checkpoint that is not quantised."
        )
    notice("LoftQ: the base is loaded once more, as it was before it was quantised")
    lost, left = repair_quantization(model, _load(plan, _download(plan)))
    notice(f"LoftQ: of what quantising took away ({lost:.4g}), {left / lost:.0%} is left")


def fetch_weights(plan: ModelPlan) -> None:
    """Download a base model's weights into the cache, so that a broken download stops early.

    Raises:
        ModelError: they are missing, or cannot be read; what is there of them stays.
    """
    source = _download(plan)
    if source.gguf_file is None:
        hub_files.fetch_weights(source, plan.revision)


def load_base(
    plan: ModelPlan, *, trained: bool = False, dequantized: bool = False
) -> PreTrainedModel:
    """Return the base model as the checkpoint has it, in the frozen weights' format.

    It is on the CPU; a quantised one on its device, a placed one in its places. With `trained`, it
    is in the trained weights' format: full fine-tuning keeps float32 masters. With `dequantized`, a
    quantised base's layers are ordinary ones, with the weights that the quantised ones stand for.
    """
    register_attention()
    notice(f"loading {plan.source}")
    source = _download(plan)
    if plan.quantization is None:
        model = _load(plan, source, trained=trained)
        return rebuilt(model, model.dtype) if plan.unpacks else model
    if source.gguf_file is None and not plan.unpacks:
        model = _load(plan, source, quantized=True)
    else:  # both are quantisations to transformers, so one comes after the other
        with TemporaryDirectory(prefix="newtune-") as folder:
            first = _load(plan, source)
            (rebuilt(first, first.dtype) if plan.unpacks else first).save_pretrained(folder)
            model = _load(plan, Source(folder), quantized=True)
    settle(model, plan.quantization)
    if not dequantized:
        return model
    return plain(model, plan.quantization, getattr(torch, plan.precision.frozen_weights))


def empty_base(plan: ModelPlan, *, trained: bool = False) -> PreTrainedModel:
    """Return the base model as `load_base` does, but without weights; buffers are computed."""
    register_attention()
    config = _config(plan)
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = build_from_config(
            model_builder(plan.model_class),
            config,
            trust_remote_code=plan.trust_remote_code,
            dtype=_dtype(plan, trained=trained),
            attn_implementation=plan.attention,
        )
    model.tie_weights()  # the context gives each of two tied names a parameter of its own
    with suppress(OSError):  # there is none
        model.generation_config = GenerationConfig.from_pretrained(
            plan.source, revision=plan.revision or "main"
        )
    return model


def _config(plan: ModelPlan, *, packed: bool = False) -> PreTrainedConfig:
    """Return the model's configuration; `packed`: of files that loading dequantises."""
    config = read_config(
        plan.config_source,
        revision=plan.revision if plan.config_source == plan.source else None,
        trust_remote_code=plan.trust_remote_code,
        overrides=plan.config_overrides,
    )
    if plan.unpacks:
        stored = config.quantization_config
        del config.quantization_config
        if packed:
            config.quantization_config = {**stored, "dequantize": True}
    return config


def _dtype(plan: ModelPlan, *, trained: bool) -> torch.dtype:
    precision = plan.precision
    name = precision.trained_weights if trained else precision.frozen_weights
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _load(
    plan: ModelPlan, source: Source, *, trained: bool = False, quantized: bool = False
) -> PreTrainedModel:
    config = _config(plan, packed=not quantized)
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": _dtype(plan, trained=trained),
        "attn_implementation": plan.attention,
        "revision": plan.revision or "main",
        **source.arguments,
        **choose_weights(source, plan.revision),
        **plan.load_kwargs,
    }
    builder = model_builder(plan.model_class)
    if not issubclass(builder, PreTrainedModel):
        arguments["trust_remote_code"] = plan.trust_remote_code
    if source.gguf_file is not None:
        # Without it the model counts as quantised: neither trainable nor savable.
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    if quantized and plan.quantization is not None:
        arguments |= quantized_loading(plan.quantization, config, device=plan.device)
    if plan.placement is not None:
        arguments |= placed_loading(plan.placement)
    try:
        with knowing(), with_ordinary_layers() if quantized else nullcontext():
            model, report = builder.from_pretrained(
                source.name, output_loading_info=True, **arguments
            )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{plan.source}: its `.bin` weights hold more than tensors and could run code; they "
            "were not opened. Convert them to safetensors where you trust them."
        ) from error
    except (HubError, OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise cannot_load(plan.source, "weights", error, revision=plan.revision) from error
    _require_complete(plan.source, report)
    assert isinstance(model, PreTrainedModel)
    if not Path(plan.source).expanduser().exists():
        model.name_or_path = plan.source  # an adapter names its base by it: not by a cache's folder
    return model


def grow_embeddings(model: PreTrainedModel, tokens: int, *, multiple: int | None) -> None:
    """Give every token an embedding row; new rows are the mean of the old ones. Never shrinks."""
    rows = _embeddings(model).shape[0]
    wanted = max(rows, tokens)
    if multiple is not None:
        wanted = -(-wanted // multiple) * multiple
    if wanted == rows:
        return
    skeleton = all(parameter.is_meta for parameter in model.parameters())
    if _embeddings(model).is_meta and not skeleton:
        raise ModelError(
            f"the embeddings are to grow from {rows} to {wanted} rows, but `device_map` leaves "
            "them on the disk or outside the GPUs. Keep them in memory."
        )
    model.resize_token_embeddings(wanted, mean_resizing=False)
    head = model.get_submodule(head_name(model))
    grown = {id(weight): weight for weight in (_embeddings(model), *head.parameters())}
    with torch.no_grad():
        for weight in grown.values():  # a bias as well
            weight[rows:] = weight[:rows].float().mean(0)
    notice(f"embeddings grown from {rows} to {wanted} rows for {tokens} tokens")


def unfreeze(model: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Train the parameters that the patterns name, or name rows of; no pattern = all."""
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    head = f"{head_name(model)}.weight" if tied else ""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not patterns or is_unfrozen(name, head, patterns))


def store_trained_as(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert what trains to `dtype` (float32 beside frozen 16-bit weights)."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def checkpoint_layers(model: PreTrainedModel | PeftModel, options: dict[str, Any]) -> None:
    """Recompute each decoder layer in the backward pass instead of keeping its activations."""
    options.setdefault("use_reentrant", False)
    base_model(model).activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def _embeddings(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _download(plan: ModelPlan) -> Source:
    source = find_source(plan.source)
    if not plan.ignore_patterns or source.is_local:
        return source
    try:
        folder = snapshot_download(
            plan.source, revision=plan.revision, ignore_patterns=list(plan.ignore_patterns)
        )
    except (HubError, OSError, ValueError) as error:
        raise cannot_load(plan.source, "files", error, revision=plan.revision) from error
    return Source(folder)


def _require_complete(source: str, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{source}: the weights are incomplete: {len(missing)} parameters are missing, "
            f"{', '.join(missing[:6])}{', ...' if len(missing) > 6 else ''}. A shard may not have "
            "been downloaded, or `model_type` names a class the checkpoint was not made for."
        )


def _say_which_rows(adapter: AdapterPlan, new: Sequence[int]) -> None:
    if not adapter.modules_to_save:
        notice(f"{len(new)} new tokens: just their embedding rows are trained beside the adapter")
