"""ReLoRA: rounds of a LoRA, each frozen when the next one starts.

Merging a round into the base would round its weights again and again, and a quantised base cannot
take it at all. So the rounds of the past stand beside the base, as one frozen adapter of growing
rank: the same sum. Written down, past and present are one ordinary LoRA.

Source: https://arxiv.org/abs/2307.05695.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from newtune.errors import ModelError
from newtune.run_dir import ADAPTER_WEIGHTS

PRESENT, PAST = "default", "past"
"""PEFT's names of the adapter that trains and of the frozen one."""


@torch.no_grad()
def start_round(model: PeftModel) -> None:
    """Freeze what was learned and let the adapter start anew; the model computes the same."""
    ended = {name: _matrices(layer, PRESENT) for name, layer in _named_layers(model)}
    past = {
        name: _matrices(layer, PAST) for name, layer in _named_layers(model) if PAST in layer.lora_A
    }
    _set_past(model, {name: _join([past.get(name), own]) for name, own in ended.items()})
    init = _config(model).init_lora_weights
    for layer in _layers(model):
        start = init if init == "gaussian" else True
        layer.reset_lora_parameters(PRESENT, start)  # type: ignore[no-untyped-call]


def require_rounds(model: PeftModel) -> None:
    """Check before the first step that the adapter can be started anew.

    Raises:
        ModelError: it trains more than the matrices of linear layers.
    """
    for name, layer in _named_layers(model):
        if PRESENT not in layer.lora_A or isinstance(layer, ParamWrapper):
            raise ModelError(
                f"relora: a LoRA on embeddings or bare parameters (`{name}`) cannot be started "
                "anew. Leave it out of `lora_target_modules`."
            )


def has_past(model: nn.Module) -> bool:
    """Tell whether a round has ended."""
    return isinstance(model, PeftModel) and PAST in model.peft_config


@torch.no_grad()
def join_rounds(model: PeftModel) -> None:
    """Make all rounds one LoRA of their summed rank, which any program loads."""
    if not has_past(model):
        return
    config = _joined_config(model)
    joined = {
        name: _join([_matrices(layer, PAST), _matrices(layer, PRESENT)])
        for name, layer in _named_layers(model)
    }
    model.delete_adapter(PAST)
    for name, layer in _named_layers(model):
        _set(layer, PRESENT, *joined[name])
    model.peft_config[PRESENT] = config


def save_rounds(model: PeftModel, folder: Path) -> None:
    """Write all rounds as one adapter, over what PEFT wrote of the present one.

    Raises:
        OSError: the disk is full.
    """
    state = {name: value.contiguous().cpu() for name, value in _joined_state(model).items()}
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = _joined_config(model)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def has_rounds(model: PeftModel, weights: Mapping[str, Tensor]) -> bool:
    """Tell whether a file holds more than one round of this model's adapter."""
    ranks = [len(value) for key, value in weights.items() if ".lora_A." in key]
    return bool(ranks) and ranks[0] > _config(model).r and not _config(model).target_parameters


@torch.no_grad()
def load_rounds(model: PeftModel, weights: Mapping[str, Tensor]) -> None:
    """Load what `save_rounds` wrote: the last ranks go on training, those before are the past.

    Raises:
        ModelError: the weights are of another model.
    """
    rank = _config(model).r
    names = {name: f"base_model.model.{name}" for name, _ in _named_layers(model)}
    try:
        pairs = {
            name: (weights[f"{key}.lora_A.weight"], weights[f"{key}.lora_B.weight"])
            for name, key in names.items()
        }
    except KeyError as error:
        raise ModelError(f"the adapter has no {error}") from error
    present = {
        key: value[-rank:] if ".lora_A." in key else value[:, -rank:]
        for key, value in weights.items()
    }
    set_peft_model_state_dict(model, present, adapter_name=PRESENT)
    past = {name: (down[:-rank], up[:, :-rank]) for name, (down, up) in pairs.items()}
    if len(next(iter(past.values()))[0]):
        _set_past(model, past)
    elif has_past(model):
        model.delete_adapter(PAST)


Pair = tuple[Tensor, Tensor]
"""A [rank, in] and B [out, rank] of one layer."""


def _set_past(model: PeftModel, pairs: Mapping[str, Pair]) -> None:
    if not has_past(model):
        _add_past(model)
    for name, layer in _named_layers(model):
        _set(layer, PAST, *pairs[name])
        layer.scaling[PAST] = layer.scaling[PRESENT]
    _config(model, PAST).r = len(next(iter(pairs.values()))[0])


def _add_past(model: PeftModel) -> None:
    config = copy.deepcopy(_config(model))
    config.lora_dropout, config.init_lora_weights = 0.0, True
    present = {p for p in model.parameters() if p.requires_grad}
    with torch.random.fork_rng():  # its first weights are replaced at once
        model.add_adapter(PAST, config)
    tuner = model.base_model
    assert isinstance(tuner, LoraModel)
    tuner.set_adapter([PRESENT, PAST])
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in present)


def _set(layer: LoraLayer, name: str, down: Tensor, up: Tensor) -> None:
    own = layer.lora_A[PRESENT].get_parameter("weight")
    for linear, weight in ((layer.lora_A[name], down), (layer.lora_B[name], up)):
        assert isinstance(linear, nn.Linear)
        trains = linear.weight.requires_grad
        linear.weight = nn.Parameter(weight.to(own.device, own.dtype).clone(), requires_grad=trains)
        linear.out_features, linear.in_features = weight.shape
    layer.r[name] = len(down)


def _join(pairs: list[Pair | None]) -> Pair:
    given = [pair for pair in pairs if pair is not None]
    return torch.cat([down for down, _ in given]), torch.cat([up for _, up in given], dim=1)


def _matrices(layer: LoraLayer, name: str) -> Pair:
    down = layer.lora_A[name].get_parameter("weight").detach()
    return down, layer.lora_B[name].get_parameter("weight").detach()


def _joined_state(model: PeftModel) -> dict[str, Tensor]:
    past, present = (
        get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        for name in (PAST, PRESENT)
    )
    return {
        key: torch.cat([past[key], value], dim=0 if ".lora_A." in key else 1)
        for key, value in present.items()
    }


def _joined_config(model: PeftModel) -> LoraConfig:
    """Return the config of all rounds: their rank, and the alpha that keeps the scale."""
    config = copy.deepcopy(_config(model))
    rank = config.r + _config(model, PAST).r
    share = rank / config.r
    config.lora_alpha *= math.sqrt(share) if config.use_rslora else share  # type: ignore[assignment]
    config.r = rank
    return config


def _config(model: PeftModel, name: str = PRESENT) -> LoraConfig:
    config = model.peft_config[name]
    assert isinstance(config, LoraConfig)
    return config


def _named_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _layers(model: PeftModel) -> list[LoraLayer]:
    return [layer for _, layer in _named_layers(model)]
