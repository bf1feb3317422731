"""Optimizers by name: which exist, what they need, and their parameter groups.

Names of transformers' own table go through its door (`Trainer.get_optimizer_cls_and_kwargs`); the
ones beside it are in `EXTRA`.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_parameter_names
from transformers.training_args import OptimizerNames

from newtune.config.choices import REFUSED_OPTIMIZERS
from newtune.errors import ConfigError, Problem, SetupError
from newtune.lookup import did_you_mean
from newtune.plan.parts import OptimizerPlan
from newtune.training.muon import Groups, muon_with_adamw

Build = Callable[[Groups, OptimizerPlan, nn.Module], Optimizer]


@dataclass(frozen=True)
class Package:
    """A package that an optimizer needs: its module and the line that installs it."""

    module: str
    install: str


BITSANDBYTES = Package("bitsandbytes", "pip install 'newtune[bitsandbytes]'")
TORCHAO = Package("torchao", "pip install torchao")
OPTIMI = Package("optimi", "pip install torch-optimi")
SCHEDULE_FREE = Package("schedulefree", "pip install 'schedulefree>=1.4'")
GALORE = Package("galore_torch", "pip install galore-torch")
APOLLO = Package("apollo_torch", "pip install apollo-torch")
GROKADAMW = Package("grokadamw", "pip install grokadamw")
CAME = Package("came_pytorch", "pip install came-pytorch")

NEEDS: Mapping[str, Package] = {
    **dict.fromkeys(
        (
            "adamw_bnb_8bit",
            "adamw_8bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "ademamix",
            "ademamix_8bit",
            "paged_ademamix_32bit",
            "paged_ademamix_8bit",
            "lion_32bit",
            "lion_8bit",
            "paged_lion_32bit",
            "paged_lion_8bit",
            "rmsprop_bnb",
            "rmsprop_bnb_8bit",
            "rmsprop_bnb_32bit",
        ),
        BITSANDBYTES,
    ),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), TORCHAO),
    **dict.fromkeys(("ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8"), TORCHAO),
    **dict.fromkeys(("stable_adamw", "optimi_adamw"), OPTIMI),
    **dict.fromkeys(
        ("schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"), SCHEDULE_FREE
    ),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), GALORE),
    "apollo_adamw": APOLLO,
    "grokadamw": GROKADAMW,
    "came_pytorch": CAME,
}


def check_optimizer(name: str) -> None:
    """Check that an optimizer exists and can be used here, before any weight is loaded.

    Raises:
        ConfigError: an unknown or refused name.
        SetupError: its package is missing; the message holds the line that installs it.
    """
    known = known_optimizers()
    if name in REFUSED_OPTIMIZERS:
        raise _problem("optimizer", f"`{name}` is not supported: {REFUSED_OPTIMIZERS[name]}.")
    if name not in known:
        hint = did_you_mean(name, known) or f"known: {', '.join(sorted(known))}"
        raise _problem("optimizer", f"unknown optimizer `{name}`; {hint}")
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package.module) is None:
        raise SetupError(
            f"`optimizer: {name}` needs the package {package.module}: {package.install}"
        )


def known_optimizers() -> set[str]:
    """Return every name that `check_optimizer` accepts when the packages are there."""
    own = {name.value for name in OptimizerNames} | set(EXTRA)
    return own - set(REFUSED_OPTIMIZERS)


def build_optimizer(
    plan: OptimizerPlan, model: nn.Module, arguments: TrainingArguments
) -> Optimizer:
    """Return the optimizer over the model's trained parameters.

    `arguments` are those of `training_arguments`; transformers' table reads them.
    """
    check_optimizer(plan.name)
    name = plan.name
    groups = parameter_groups(model, plan)
    if plan.target_modules is not None and NEEDS.get(name) not in (GALORE, APOLLO):
        raise _problem("optim_target_modules", f"does not act with `optimizer: {name}`")
    if name in EXTRA:
        return EXTRA[name](groups, plan, model)
    return _from_transformers(name, groups, plan, model, arguments)


def parameter_groups(model: nn.Module, plan: OptimizerPlan) -> Groups:
    """Return the trained parameters in groups: no weight decay on norms and biases.

    Input embeddings form groups of their own when `embedding_learning_rate` is given, LoRA
    matrices and trained token rows on the embeddings included. With `lora_plus`, so do the B
    matrices and the adapters of embeddings.
    """
    decayed = set(_decayed_names(model))
    rates = {name: (0, plan.learning_rate) for name, _ in model.named_parameters()}
    rates |= _embedding_rates(model, plan) | _lora_plus_rates(model, plan)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place, rate = rates[name]
            group = {"params": [], "lr": rate, "weight_decay": plan.weight_decay}
            if name not in decayed:
                group["weight_decay"] = 0.0
            groups.setdefault((place, name not in decayed), group)["params"].append(parameter)
    return [groups[kind] for kind in sorted(groups)]


Rates = dict[str, tuple[int, float]]
"""Name of a parameter → place of its group among the groups, its learning rate."""


def _embedding_rates(model: nn.Module, plan: OptimizerPlan) -> Rates:
    if plan.embedding_learning_rate is None:
        return {}
    names = _embedding_names(model)
    if not any(p.requires_grad for name, p in model.named_parameters() if name in names):
        raise _problem("embedding_lr", "no embedding is trained in this run")
    return dict.fromkeys(names, (1, plan.embedding_learning_rate))


def _lora_plus_rates(model: nn.Module, plan: OptimizerPlan) -> Rates:
    """Return the rates of LoRA+; vectors go with B, as in its authors' code.

    Source: https://arxiv.org/abs/2402.12354.
    """
    if plan.lora_plus is None:
        return {}
    of_b = (1, plan.learning_rate * plan.lora_plus.ratio)
    of_embeddings = (2, plan.lora_plus.embedding_learning_rate)
    rates: Rates = {}
    for name, parameter in model.named_parameters():
        if ".lora_embedding_" in name:
            rates[name] = of_embeddings
        elif ".lora_B." in name or parameter.ndim == 1:
            rates[name] = of_b
    return rates


_WITHOUT_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def _decayed_names(model: nn.Module) -> list[str]:
    names: list[str] = get_parameter_names(  # type: ignore[no-untyped-call]
        model, [nn.LayerNorm], _WITHOUT_DECAY
    )
    return names


def _embedding_names(model: nn.Module) -> set[str]:
    prefixes = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    return {
        name
        for name, _ in model.named_parameters()
        if any(_belongs_to(name, prefix) for prefix in prefixes)
    }


def _belongs_to(parameter: str, embedding: str) -> bool:
    # PEFT wraps an embedding `embed` as `embed.base_layer` and puts its own weights beside it, as
    # `embed.lora_embedding_A...`, `embed.token_adapter...` or `embed.modules_to_save...`.
    owner = embedding.split(".base_layer")[0].split(".original_module")[0]
    return parameter.startswith(f"{owner}.")


def _from_transformers(
    name: str,
    groups: Groups,
    plan: OptimizerPlan,
    model: nn.Module,
    arguments: TrainingArguments,
) -> Optimizer:
    if NEEDS.get(name) in (GALORE, APOLLO):
        targets = plan.target_modules or "all-linear"
        arguments.optim_target_modules = targets if isinstance(targets, str) else list(targets)
    network: Any = model
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, network)
    low_rank = options.pop("params", None)
    if low_rank is not None and plan.embedding_learning_rate is not None:
        raise _problem("embedding_lr", f"does not act with `optimizer: {name}`")
    if low_rank is not None and plan.lora_plus is not None:
        raise _problem("loraplus_lr_ratio", _no_groups(name))
    for group in low_rank or ():
        group["weight_decay"] = plan.weight_decay
    if low_rank is None:
        options.update(_own_arguments(optimizer_class, name, plan.arguments))
    optimizer: Optimizer = optimizer_class(low_rank or groups, **options)
    if options.get("optim_bits") == 8:
        _keep_embeddings_in_32_bit(model)
    return optimizer


def _no_groups(name: str) -> str:
    return (
        f"does not act with `optimizer: {name}`, which makes its groups itself: the matrices that "
        "it projects and the rest, at one learning rate"
    )


ADEMAMIX_BETAS = frozenset({"beta1", "beta2", "beta3"})
"""transformers reads them from `optim_args` one by one and hands them over as `betas`."""


def _own_arguments(
    optimizer_class: type[Optimizer], name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `optim_args` as keyword arguments of the class, refusing those it does not take."""
    allowed = [key for key in inspect.signature(optimizer_class).parameters if key != "params"]
    elsewhere = ADEMAMIX_BETAS if "ademamix" in name else frozenset[str]()
    for key in given:
        if key not in allowed and key not in elsewhere:
            hint = did_you_mean(key, allowed) or f"it takes: {', '.join(allowed)}"
            raise _problem(f"optim_args.{key}", f"`optimizer: {name}` has no `{key}`; {hint}")
    return {key: value for key, value in given.items() if key in allowed}


def _keep_embeddings_in_32_bit(model: nn.Module) -> None:
    # bitsandbytes' own advice: 8-bit statistics make embeddings unstable
    manager = importlib.import_module("bitsandbytes").optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            manager.register_module_override(module, "weight", {"optim_bits": 32})


# --- the ones beside transformers' table


def _muon(groups: Groups, plan: OptimizerPlan, model: nn.Module) -> Optimizer:
    arguments = _own_arguments(torch.optim.Muon, "muon", plan.arguments)
    return muon_with_adamw(groups, plan, arguments, vocabulary=_vocabulary_parameters(model))


def _vocabulary_parameters(model: nn.Module) -> set[int]:
    """Return the identities of the embeddings' and the output head's own parameters."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if isinstance(model, PreTrainedModel | PeftModel):
        modules.append(model.get_output_embeddings())
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _adamw(
    optimizer_class: Callable[..., Optimizer],
    groups: Groups,
    plan: OptimizerPlan,
    arguments: Mapping[str, Any],
) -> Optimizer:
    return optimizer_class(
        groups,
        lr=plan.learning_rate,
        betas=(plan.beta1, plan.beta2),
        eps=plan.epsilon,
        weight_decay=plan.weight_decay,
        **arguments,
    )


def _adamw_of(module: str, class_name: str) -> Build:
    def build(groups: Groups, plan: OptimizerPlan, model: nn.Module) -> Optimizer:
        optimizer_class = getattr(importlib.import_module(module), class_name)
        arguments = _own_arguments(optimizer_class, plan.name, plan.arguments)
        return _adamw(optimizer_class, groups, plan, arguments)

    return build


def _came(groups: Groups, plan: OptimizerPlan, model: nn.Module) -> Optimizer:
    came = importlib.import_module("came_pytorch").CAME
    options = {"betas": (plan.beta1, plan.beta2, 0.9999), "weight_decay": plan.weight_decay}
    arguments = _own_arguments(came, "came_pytorch", plan.arguments)
    optimizer: Optimizer = came(groups, lr=plan.learning_rate, **{**options, **arguments})
    return optimizer


EXTRA: Mapping[str, Build] = {
    "muon": _muon,
    "optimi_adamw": _adamw_of("optimi", "AdamW"),
    "ao_adamw_4bit": _adamw_of("torchao.optim", "AdamW4bit"),
    "ao_adamw_8bit": _adamw_of("torchao.optim", "AdamW8bit"),
    "ao_adamw_fp8": _adamw_of("torchao.optim", "AdamWFp8"),
    "came_pytorch": _came,
}


def _problem(path: str, message: str) -> ConfigError:
    return ConfigError([Problem(path, message)])
