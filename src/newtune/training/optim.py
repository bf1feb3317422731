"""Optimizers by name: which exist, what they need, their parameter groups, their state by name.

Names of transformers' own table go through its door (`Trainer.get_optimizer_cls_and_kwargs`); the
ones beside it are in `EXTRA`.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_parameter_names
from transformers.training_args import OptimizerNames

from newtune.errors import ConfigError, Problem, SetupError
from newtune.lookup import did_you_mean
from newtune.plan.parts import OptimizerPlan

Groups = list[dict[str, Any]]
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

_IN_BACKWARD = (
    "it updates the weights during the backward pass, so that accumulation, clipping and exact "
    "resuming are impossible"
)
REFUSED: Mapping[str, str] = {
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "adamw_torch_xla": "it runs on TPUs only",
    "adamw_torch_npu_fused": "it runs on Ascend NPUs only",
    "adamw_anyprecision": "its package torchdistx is no longer maintained; use `stable_adamw` or "
    "`adamw_torch` with float32 masters (`bf16: true`)",
}

ALIASES: Mapping[str, str] = {"lion": "lion_32bit", "adamw": "adamw_torch"}
"""Short names of the field → the name of the table."""


def check_optimizer(name: str) -> None:
    """Check that an optimizer exists and can be used here, before any weight is loaded.

    Raises:
        ConfigError: an unknown or refused name.
        SetupError: its package is missing; the message holds the line that installs it.
    """
    name = ALIASES.get(name, name)
    known = known_optimizers()
    if name in REFUSED:
        raise _problem("optimizer", f"`{name}` is not supported: {REFUSED[name]}.")
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
    own = {name.value for name in OptimizerNames} | set(EXTRA) | set(ALIASES)
    return own - set(REFUSED)


def build_optimizer(
    plan: OptimizerPlan, model: nn.Module, arguments: TrainingArguments
) -> Optimizer:
    """Return the optimizer over the model's trained parameters.

    `arguments` are those of `training_arguments`; transformers' table reads them.
    """
    check_optimizer(plan.name)
    name = ALIASES.get(plan.name, plan.name)
    groups = parameter_groups(model, plan)
    if name in EXTRA:
        return EXTRA[name](groups, plan, model)
    return _from_transformers(name, groups, plan, model, arguments)


def parameter_groups(model: nn.Module, plan: OptimizerPlan) -> Groups:
    """Return the trained parameters in groups: no weight decay on norms and biases.

    Input embeddings form groups of their own when `embedding_learning_rate` is given, LoRA
    matrices and trained token rows on the embeddings included.
    """
    decayed = set(_decayed_names(model))
    embeddings = _embedding_names(model) if plan.embedding_learning_rate is not None else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = (name in embeddings, name in decayed)
            groups.setdefault(kind, []).append(parameter)
    if plan.embedding_learning_rate is not None and not any(kind[0] for kind in groups):
        raise _problem("embedding_lr", "no embedding is trained in this run")
    return [
        {
            "params": groups[kind],
            "lr": plan.embedding_learning_rate if kind[0] else plan.learning_rate,
            "weight_decay": plan.weight_decay if kind[1] else 0.0,
        }
        for kind in sorted(groups, key=lambda kind: (kind[0], not kind[1]))
    ]


_WITHOUT_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def _decayed_names(model: nn.Module) -> list[str]:
    names: list[str] = get_parameter_names(model, [nn.LayerNorm], _WITHOUT_DECAY)
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
        arguments.optim_target_modules = plan.arguments.get("target_modules", "all-linear")
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    low_rank = options.pop("params", None)
    if low_rank is not None and plan.embedding_learning_rate is not None:
        raise _problem("embedding_lr", f"does not act with `optimizer: {name}`")
    if low_rank is None:
        options.update(_own_arguments(optimizer_class, name, plan.arguments))
    optimizer: Optimizer = optimizer_class(low_rank or groups, **options)
    if options.get("optim_bits") == 8:
        _keep_embeddings_in_32_bit(model)
    return optimizer


_READ_BY_TRANSFORMERS: Mapping[Package, frozenset[str]] = {
    BITSANDBYTES: frozenset({"beta1", "beta2", "beta3"}),
}


def _own_arguments(
    optimizer_class: type[Optimizer], name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `optim_args` as keyword arguments of the class, refusing those it does not take."""
    allowed = [key for key in inspect.signature(optimizer_class).parameters if key != "params"]
    package = NEEDS.get(name)
    elsewhere = _READ_BY_TRANSFORMERS.get(package, frozenset()) if package else frozenset()
    for key in given:
        if key not in allowed and not ("ademamix" in name and key in elsewhere):
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


class Joined(Optimizer):
    """Several optimizers, each over its own parameters, that act as one.

    Their groups are shared, not copied: a schedule that sets `lr` here sets it there.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Let every part make its step."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states as one, parameters numbered through."""
        state: dict[int, Any] = {}
        groups: Groups = []
        for part in self.parts:
            own, offset = part.state_dict(), sum(len(group["params"]) for group in groups)
            state |= {number + offset: value for number, value in own["state"].items()}
            for group in own["param_groups"]:
                groups.append({**group, "params": [n + offset for n in group["params"]]})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand every part its share of what `state_dict` returned."""
        groups = list(state_dict["param_groups"])
        offset = 0
        for part in self.parts:
            own = [groups.pop(0) for _ in part.param_groups]
            count = sum(len(group["params"]) for group in own)
            part.load_state_dict(
                {
                    "state": {
                        number - offset: value
                        for number, value in state_dict["state"].items()
                        if offset <= number < offset + count
                    },
                    "param_groups": [
                        {**group, "params": [n - offset for n in group["params"]]} for group in own
                    ],
                }
            )
            offset += count
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _muon(groups: Groups, plan: OptimizerPlan, model: nn.Module) -> Optimizer:
    """Muon for the hidden matrices, AdamW for embeddings, head, norms and biases.

    Muon's update is scaled to AdamW's size, so that one learning rate serves both
    (https://arxiv.org/abs/2502.16982); `optim_args: {adjust_lr_fn: original}` undoes it.
    """
    options = {"adjust_lr_fn": "match_rms_adamw", **plan.arguments}
    allowed = _own_arguments(torch.optim.Muon, "muon", options)
    matrices, others = _split_matrices(groups, _vocabulary_parameters(model))
    parts: list[Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=plan.learning_rate, **allowed))
    if others:
        parts.append(_adamw(torch.optim.AdamW, others, plan, {}))
    return Joined(parts)


def _split_matrices(groups: Groups, vocabulary: set[int]) -> tuple[Groups, Groups]:
    matrices, others = [], []
    for group in groups:
        hidden = [p for p in group["params"] if p.ndim == 2 and id(p) not in vocabulary]
        rest = [p for p in group["params"] if p.ndim != 2 or id(p) in vocabulary]
        if hidden:
            matrices.append({**group, "params": hidden})
        if rest:
            others.append({**group, "params": rest})
    return matrices, others


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


# --- state by parameter name


def named_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the optimizer's state keyed by parameter name, so that any layout can read it.

    `{"state": {name: {...}}, "param_groups": [{..., "params": [names]}]}`
    """
    names = _names_in_order(optimizer, model)
    saved = optimizer.state_dict()
    return {
        "state": {names[number]: value for number, value in saved["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in saved["param_groups"]
        ],
    }


def load_named_state(optimizer: Optimizer, model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore what `named_state` returned; the order of parameters and groups may have changed.

    Raises:
        KeyError: a trained parameter without a group in `saved`.
    """
    names = _names_in_order(optimizer, model)
    numbers = {name: number for number, name in enumerate(names)}
    group_of = {name: group for group in saved["param_groups"] for name in group["params"]}
    current = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {
            "state": {
                numbers[name]: value for name, value in saved["state"].items() if name in numbers
            },
            "param_groups": [
                {**group_of[names[group["params"][0]]], "params": group["params"]}
                for group in current
            ],
        }
    )
    _restore_dtypes(optimizer, dict(model.named_parameters()), saved["state"])


def _names_in_order(optimizer: Optimizer, model: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _restore_dtypes(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Any]
) -> None:
    # torch casts a restored state to its parameter's dtype; a float32 state of a bfloat16 weight
    # (Adafactor) would lose bits, and the resumed run would differ.
    parts: Iterable[Optimizer] = optimizer.parts if isinstance(optimizer, Joined) else [optimizer]
    for part in parts:
        for name, values in saved.items():
            state = part.state.get(parameters[name]) if name in parameters else None
            for key, value in values.items():
                if state and isinstance(value, torch.Tensor) and state[key].dtype != value.dtype:
                    state[key] = value.to(state[key].device)


def _problem(path: str, message: str) -> ConfigError:
    return ConfigError([Problem(path, message)])
