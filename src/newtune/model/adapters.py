"""AdapterPlan → a PEFT model whose adapter trains."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import (
    EvaConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
    load_peft_weights,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from newtune.errors import ModelError
from newtune.hub import HubError
from newtune.logs import notice
from newtune.lookup import did_you_mean
from newtune.model.fingerprint import fingerprint
from newtune.model.head import LoraOutputHead, OutputHead, head_name, install_adapted_heads
from newtune.model.placement import input_device
from newtune.model.sources import cannot_load
from newtune.plan.parts import AdapterPlan

MUTATING_INITS = ("pissa", "olora", "corda", "loftq")
"""Initialisations that change the base weights of the adapted layers whenever PEFT loads them."""

UNTOUCHED_BASE = "fingerprint_of_untouched_base"
"""Name of a buffer of such a model, on no disk: the fingerprint of the base as it was before."""


def attach_adapter(
    model: PreTrainedModel, plan: AdapterPlan, *, new_token_ids: Sequence[int] = ()
) -> PeftModel:
    """Return the model with the adapter on it, everything else frozen.

    `new_token_ids`: tokens whose embedding rows are trained besides, unless `modules_to_save`
    names the embeddings. The output head must be installed already.

    Raises:
        ModelError: the adapter matches no module, or the one to go on from cannot be read.
    """
    if plan.continue_from is not None:
        return _continue(model, plan.continue_from, on_cpu=plan.read_on_cpu)
    if plan.init == "olora" and any(isinstance(module, Conv1D) for module in model.modules()):
        raise ModelError(
            f"peft_init_lora_weights: PEFT's `olora` takes the weights of {type(model).__name__}, "
            "which are stored as (in, out), the wrong way round. `pissa` takes them right."
        )
    config = lora_config(model, plan, new_token_ids)
    before = _before_it_changes(model, config)
    try:
        with _knowing(), _found_again(config):
            peft_model = get_peft_model(model, config)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise ModelError(f"the adapter does not fit this model: {error}") from error
        raise ModelError(_no_match(model, plan)) from error
    assert isinstance(peft_model, PeftModel)
    _require_own_weights(peft_model, plan)
    if plan.fan_in_fan_out and not _has_transposed_targets(peft_model):
        notice("`lora_fan_in_fan_out` has no effect: the targets store their weights as (out, in)")
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and any(isinstance(module, LoraOutputHead) for module in peft_model.modules()):
        notice(
            "the LoRA on the output head leaves the embeddings as they are, although the base "
            "model ties the two; merging has to untie them"
        )
    return _finished(peft_model, before)


def _has_transposed_targets(model: PeftModel) -> bool:
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers)


def _require_own_weights(model: PeftModel, plan: AdapterPlan) -> None:
    """Refuse to take a part out of a weight that serves elsewhere as well."""
    if not (isinstance(plan.init, str) and plan.init.startswith(MUTATING_INITS)):
        return
    users: dict[int, list[str]] = {}
    for name, parameter in model.get_base_model().named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for names in users.values():
        adapted = [name for name in names if name.endswith(".base_layer.weight")]
        if adapted and len(names) > 1:
            layer = adapted[0].removesuffix(".base_layer.weight")
            raise ModelError(
                f"peft_init_lora_weights: `{plan.init}` takes a part out of `{layer}`, whose "
                "weight is tied to another layer's, and would change that one too. Leave it out "
                "of `lora_target_modules`, or name it in `lora_modules_to_save`."
            )


def read_adapter(folder: str) -> AdapterPlan:
    """Return what the adapter to go on from is; its own settings are the run's.

    Raises:
        ModelError: it cannot be read.
    """
    config = _read_adapter_config(folder, "adapter (`lora_model_dir`)")
    targets, layers = config.target_modules or (), config.layers_to_transform
    return AdapterPlan(
        kind="lora",
        rank=config.r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        layers=None if layers is None else tuple([layers] if isinstance(layers, int) else layers),
        modules_to_save=tuple(config.modules_to_save or ()),
        fan_in_fan_out=config.fan_in_fan_out,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init=True,
        continue_from=folder,
        target_parameters=tuple(config.target_parameters or ()),
    )


def lora_config(
    model: PreTrainedModel, plan: AdapterPlan, new_token_ids: Sequence[int] = ()
) -> LoraConfig:
    """Return PEFT's own description of the adapter."""
    further: dict[str, Any] = dict(plan.further_arguments)
    trained_rows = _trained_rows(model, plan, new_token_ids)
    if trained_rows:
        further.setdefault("trainable_token_indices", trained_rows)
    if plan.init == "eva":
        further["eva_config"] = EvaConfig(rho=1.0)
    if _saves_tied_weights(model, plan):
        further.setdefault("ensure_weight_tying", True)
    targets = plan.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=plan.rank,
        lora_alpha=plan.alpha,  # type: ignore[arg-type]  # PEFT takes fractions as well
        lora_dropout=plan.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        layers_to_transform=None if plan.layers is None else list(plan.layers),
        modules_to_save=list(plan.modules_to_save) or None,
        fan_in_fan_out=plan.fan_in_fan_out,
        use_rslora=plan.use_rslora,
        use_dora=plan.use_dora,
        init_lora_weights=plan.init,  # type: ignore[arg-type]  # PEFT checks the name
        target_parameters=list(plan.target_parameters) or None,
        **further,
    )
    config._register_custom_module({OutputHead: LoraOutputHead})
    return config


def _continue(model: PreTrainedModel, folder: str, *, on_cpu: bool) -> PeftModel:
    """Load an adapter so that it trains on."""
    config = _read_adapter_config(folder, "adapter")
    before = _before_it_changes(model, config)
    try:
        config._register_custom_module({OutputHead: LoraOutputHead})
        with _knowing(), _found_again(config):
            if any(parameter.is_meta for parameter in model.parameters()):
                peft_model = _beside_fetched(model, folder, config)
            else:
                device = "cpu" if on_cpu else None
                peft_model = PeftModel.from_pretrained(
                    model, folder, config=config, is_trainable=True, torch_device=device
                )
    except (HubError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise cannot_load(folder, "adapter", error) from error
    return _finished(peft_model, before)


def _beside_fetched(model: PreTrainedModel, folder: str, config: LoraConfig) -> PeftModel:
    """Load an adapter whose own weights are in memory, over layers that are fetched when needed."""
    if config.use_dora or config.modules_to_save or config.trainable_token_indices:
        raise ModelError(
            "`device_map` leaves layers on the disk or outside the GPUs, where DoRA, "
            "`lora_modules_to_save` and trained embedding rows cannot reach them. Merge first."
        )
    with warnings.catch_warnings():  # of what is done about it below
        warnings.simplefilter("ignore", UserWarning)
        peft_model = PeftModel(model, config)
    weights = load_peft_weights(folder, device=str(input_device(model)))
    # PEFT's own way of loading leaves an adapter where its layer is: on the meta device
    own = {name.replace(".default.", "."): name for name in peft_model.state_dict()}
    named = {own[name]: weight for name, weight in weights.items()}
    peft_model.load_state_dict(named, strict=False, assign=True)
    return peft_model


def _before_it_changes(model: PreTrainedModel, config: LoraConfig) -> bytes | None:
    """Return the fingerprint of a base of which the adapter will take a part."""
    init = config.init_lora_weights
    if not (isinstance(init, str) and init.startswith(MUTATING_INITS)):
        return None
    return fingerprint(model.named_parameters())


def _read_adapter_config(folder: str, what: str) -> LoraConfig:
    try:
        config = LoraConfig.from_pretrained(folder)
    except (HubError, OSError, ValueError, TypeError) as error:
        raise cannot_load(folder, what, error) from error
    assert isinstance(config, LoraConfig)
    return config


_ANSWERED_HERE = (
    ("lora with eva initialization used with low_cpu_mem_usage=False", UserWarning),
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),  # PEFT 0.21, transformers 5.23
    ("fan_in_fan_out is set to True but the target module is `torch.nn.Linear`", UserWarning),
    ("fan_in_fan_out is set to False but the target module is `Conv1D`", UserWarning),
    ("Model has `tie_word_embeddings=True` and a tied layer is part of the adapter", UserWarning),
)
"""PEFT's warnings about what is meant: names it still uses, the layout of GPT-2's layers, and a
LoRA on one of two tied matrices, of which `attach_adapter` gives notice itself."""


@contextmanager
def _knowing() -> Iterator[None]:
    with warnings.catch_warnings():
        for message, category in _ANSWERED_HERE:
            warnings.filterwarnings("ignore", re.escape(message), category)
        yield


@contextmanager
def _found_again(config: LoraConfig) -> Iterator[None]:
    """Draw from a fixed seed where PEFT finds a part of the base by sampling (`pissa_niter_4`).

    That part is taken out of the base's weights whenever the adapter is loaded: it has to be the
    same part, in whatever run and at whatever moment that is.
    """
    init = config.init_lora_weights
    if not (isinstance(init, str) and init.startswith("pissa_niter")):
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _finished(model: PeftModel, untouched_base: bytes | None) -> PeftModel:
    install_adapted_heads(model)
    if untouched_base is not None:
        digest = torch.tensor(list(untouched_base), dtype=torch.uint8)
        model.register_buffer(UNTOUCHED_BASE, digest, persistent=False)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # Under autocast the cast to the adapter's float32 is undone at once, for two more
            # copies of every layer's input.
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]  # a plain attribute
    return model


def _trained_rows(
    model: PreTrainedModel, plan: AdapterPlan, new_token_ids: Sequence[int]
) -> dict[str, list[int]]:
    """Return PEFT's `trainable_token_indices`: module → rows."""
    if not new_token_ids:
        return {}
    embeddings = _name_of(model, model.get_input_embeddings()).rpartition(".")[2]
    head = head_name(model).rpartition(".")[2]
    rows = sorted(new_token_ids)
    tied = model.config.get_text_config().tie_word_embeddings
    wanted = [embeddings] if tied else [embeddings, head]
    return {name: rows for name in wanted if name not in plan.modules_to_save}


def _saves_tied_weights(model: PreTrainedModel, plan: AdapterPlan) -> bool:
    """Whether embeddings that serve as output head too are trained as a whole."""
    names = (_name_of(model, model.get_input_embeddings()), head_name(model))
    saved = any(name.rpartition(".")[2] in plan.modules_to_save for name in names)
    return saved and bool(model.config.get_text_config().tie_word_embeddings)


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def _no_match(model: PreTrainedModel, plan: AdapterPlan) -> str:
    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules()
                    if isinstance(module, nn.Linear | nn.Embedding)})  # fmt: skip
    wanted = plan.target_modules
    shown = wanted if isinstance(wanted, str) else ", ".join(wanted)
    hint = did_you_mean(shown, names)
    return (
        f"the adapter matches no module: `{shown}`{_layers(plan)}. {hint + ' ' if hint else ''}"
        f"This model has: {', '.join(names)}."
    )


def _layers(plan: AdapterPlan) -> str:
    return "" if plan.layers is None else f" in layers {', '.join(map(str, plan.layers))}"
