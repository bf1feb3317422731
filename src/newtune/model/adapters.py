"""AdapterPlan → a PEFT model whose adapter trains."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from newtune.errors import ModelError
from newtune.lookup import did_you_mean
from newtune.model.head import LoraOutputHead, OutputHead, head_name, install_token_heads
from newtune.model.sources import cannot_load
from newtune.plan.parts import AdapterPlan


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
        return _continue(model, plan.continue_from)
    config = lora_config(model, plan, new_token_ids)
    try:
        with _without_renaming_notes():
            peft_model = get_peft_model(model, config)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise ModelError(f"the adapter does not fit this model: {error}") from error
        raise ModelError(_no_match(model, plan)) from error
    assert isinstance(peft_model, PeftModel)
    return _finished(peft_model)


def lora_config(
    model: PreTrainedModel, plan: AdapterPlan, new_token_ids: Sequence[int] = ()
) -> LoraConfig:
    """Return PEFT's own description of the adapter."""
    further: dict[str, Any] = dict(plan.further_arguments)
    trained_rows = _trained_rows(model, plan, new_token_ids)
    if trained_rows:
        further.setdefault("trainable_token_indices", trained_rows)
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


def _continue(model: PreTrainedModel, folder: str) -> PeftModel:
    """Load an adapter so that it trains on."""
    try:
        config = LoraConfig.from_pretrained(folder)
        config._register_custom_module({OutputHead: LoraOutputHead})
        with _without_renaming_notes():
            peft_model = PeftModel.from_pretrained(model, folder, config=config, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_load(folder, "adapter (`lora_model_dir`)", error) from error
    return _finished(peft_model)


@contextmanager
def _without_renaming_notes() -> Iterator[None]:
    """Keep quiet that PEFT 0.21 still uses the name transformers 5.23 is giving up."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


def _finished(model: PeftModel) -> PeftModel:
    install_token_heads(model)
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
