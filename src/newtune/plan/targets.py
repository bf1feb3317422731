"""What an adapter touches and how many parameters it trains, from the model's facts alone."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from newtune.errors import ModelError
from newtune.plan.facts import ModelFacts
from newtune.plan.parts import AdapterPlan
from newtune.plan.unfrozen import count_rows, is_unfrozen, tied_head, trained_rows


def resolve_targets(
    facts: ModelFacts,
    *,
    modules: Sequence[str] | str | None,
    all_linear: bool,
    parameters: Sequence[str] = (),
) -> tuple[str, ...] | str:
    """Return the target modules for PEFT: last parts of names, full names, or one regex.

    `all_linear` means every linear layer but the output head and routers of experts; given
    `modules` are added to it.

    Raises:
        ModelError: nothing is targeted, or a given name matches no module; lists what there is.
    """
    if isinstance(modules, str) and not all_linear:
        found = [name for name in module_names(facts) if re.fullmatch(modules, name)]
        if not found and not any(ends_with(name, [modules]) for name in module_names(facts)):
            raise ModelError(_no_match(facts, modules))
        _require_called(facts, found or [modules])
        _require_adaptable(facts, found or [modules])
        _require_not_taken_for_experts(facts, found or [modules])
        return modules if found else (modules,)
    given = [modules] if isinstance(modules, str) else list(modules or ())
    _require_called(facts, given)
    _require_adaptable(facts, given)
    _require_not_taken_for_experts(facts, given)
    for name in given:
        if not any(ends_with(module, [name]) for module in module_names(facts)):
            raise ModelError(_no_match(facts, name))
    if not all_linear and not given and not parameters:
        raise ModelError(
            "`adapter: lora` needs `lora_target_linear: true` or `lora_target_modules`. "
            f"Linear layers of this model: {_listing(_last_parts(facts.linear_modules))}."
        )
    if not all_linear:
        return tuple(given)
    return tuple(sorted({*_linear_targets(facts), *given}))


def count_trainable(
    facts: ModelFacts,
    adapter: AdapterPlan | None,
    unfrozen_parameters: Sequence[str] = (),
    new_tokens: int = 0,
) -> int:
    """Return how many parameters will be trained; equals PEFT's own count (by test).

    Without an adapter that is every parameter, or those that a pattern of `unfrozen_parameters`
    names, or their rows. `new_tokens`: tokens whose embedding rows an adapter
    trains besides.
    """
    if adapter is None:
        return _count_unfrozen(facts, unfrozen_parameters)
    total = sum(math.prod(facts.parameter_shapes[name]) for name in _saved(facts, adapter))
    for module in adapter_targets(facts, adapter):
        rows, columns = _matrix(facts, module)
        total += adapter.rank * (rows + columns) + (columns if adapter.use_dora else 0)
    for name, shape in facts.parameter_shapes.items():
        if ends_with(name, adapter.target_parameters):
            stacked = shape[0] if len(shape) == 3 else 1
            total += adapter.rank * stacked * (shape[-1] + shape[-2])
    return total + new_tokens * facts.hidden_size * (1 if facts.tied_embeddings else 2)


def _count_unfrozen(facts: ModelFacts, patterns: Sequence[str]) -> int:
    if not patterns:
        return sum(map(math.prod, facts.parameter_shapes.values()))
    total, head = 0, tied_head(facts)
    for name, shape in facts.parameter_shapes.items():
        if is_unfrozen(name, head, patterns):
            rows = trained_rows(name, head, patterns)
            size = math.prod(shape)
            total += size if rows is None else count_rows(rows, shape[0]) * size // shape[0]
    return total


def _saved(facts: ModelFacts, adapter: AdapterPlan) -> set[str]:
    """Return the parameters that are trained in full, those of tied embeddings once.

    PEFT takes every module whose name ends so, in the middle of a part as well: `norm` means
    `input_layernorm`, too.
    """
    ends = adapter.modules_to_save
    names = {n for n in facts.parameter_shapes if any(m.endswith(ends) for m in above(n))}
    if facts.tied_embeddings and facts.head_name.endswith(ends):
        names.add(f"{_embeddings(facts)}.weight")
    return names


def above(name: str) -> Iterator[str]:
    """Yield the dotted names of the modules that a parameter lies in."""
    while name := name.rpartition(".")[0]:
        yield name


def adapter_targets(facts: ModelFacts, adapter: AdapterPlan) -> list[str]:
    """Return the dotted names of the modules that get a LoRA; an empty list means a mistake."""
    targets = adapter.target_modules
    names = [name for name in module_names(facts) if not ends_with(name, adapter.modules_to_save)]
    if isinstance(targets, str):
        return [name for name in names if re.fullmatch(targets, name)]
    return [n for n in names if ends_with(n, targets) and _in_layers(n, adapter.layers)]


def module_names(facts: ModelFacts) -> list[str]:
    """Return the dotted names of the modules with a weight matrix, the output head included."""
    matrices = [
        name.removesuffix(".weight")
        for name, shape in facts.parameter_shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    ]
    return list(dict.fromkeys([*matrices, *facts.linear_modules]))


def read_directly(facts: ModelFacts) -> frozenset[str]:
    """Return the layers whose weights a state-space kernel reads, without calling the layer.

    A LoRA on them would have no effect, and a quantised weight no meaning. Which of them are read
    depends on the kernels that are installed; none of them is adapted, wherever it trains.
    """
    mixers = {n.removesuffix(".A_log") for n in facts.parameter_shapes if n.endswith(".A_log")}
    mixers = {name for name in mixers if f"{name}.D" in facts.parameter_shapes}
    names = (f"{mixer}.{layer}" for mixer in mixers for layer in ("x_proj", "dt_proj", "out_proj"))
    return frozenset(names) & facts.linear_modules.keys()


def expert_parameters(facts: ModelFacts) -> list[str]:
    """Return the names of stacked matrices, one per expert, as `lora_target_parameters` takes them.

    They are no linear layers. A convolution's weight has three axes too, one of them of size 1.
    """
    shapes = facts.parameter_shapes.items()
    stacks = [name for name, shape in shapes if len(shape) == 3 and 1 not in shape]
    return sorted({re.sub(r".*\.\d+\.", "", name) for name in stacks})


def _require_called(facts: ModelFacts, targets: Sequence[str]) -> None:
    for name in sorted(read_directly(facts)):
        if ends_with(name, targets):
            raise ModelError(
                f"lora_target_modules: `{_last(name)}` cannot be adapted: a state-space kernel of "
                f"this {facts.model_type} model reads its weight without calling it, so that a "
                "LoRA on it would have no effect. Leave it out."
            )


def _require_adaptable(facts: ModelFacts, targets: Sequence[str]) -> None:
    for name, adaptable in facts.routers.items():
        if not adaptable and ends_with(name, targets):
            raise ModelError(
                f"lora_target_modules: `{_last(name)}` chooses the experts of this "
                f"{facts.model_type} model and returns its choice: no LoRA can be put beside it. "
                f"Leave it out, or give `lora_target_parameters: [{_weight_of(name)}]`."
            )


def _require_not_taken_for_experts(facts: ModelFacts, targets: Sequence[str]) -> None:
    for name in sorted(facts.taken_for_experts):
        if ends_with(name, targets):
            experts = ", ".join(expert_parameters(facts))
            raise ModelError(
                f"lora_target_modules: PEFT takes `{_last(name)}` of {facts.model_type} models for "
                "its experts, as they were called once, and would leave dense layers and shared "
                f"experts of that name as they are. Name the experts themselves: "
                f"`lora_target_parameters: [{experts}]`, with `lora_dropout: 0`."
            )


def _weight_of(module: str) -> str:
    """Return a module's weight as `lora_target_parameters` takes it, for all layers alike."""
    return f"{'.'.join(module.split('.')[-2:])}.weight"


def _linear_targets(facts: ModelFacts) -> list[str]:
    """Return last parts of names; full names where a layer that is left out is called the same."""
    left_out = {facts.head_name, *read_directly(facts), *facts.routers, *facts.taken_for_experts}
    taken = {_last(name) for name in left_out}
    inner = [name for name in facts.linear_modules if name not in left_out]
    return [name if _last(name) in taken else _last(name) for name in inner]


def _no_match(facts: ModelFacts, wanted: str) -> str:
    return (
        f"lora_target_modules: `{wanted}` matches no module of this {facts.model_type} model. "
        f"It has: {_listing(_last_parts(module_names(facts)))}."
    )


def _listing(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({_last(name) for name in names})


def _embeddings(facts: ModelFacts) -> str:
    """Return the module whose matrix has a row per token and is no linear layer."""
    shape = (facts.vocab_size, facts.hidden_size)
    names = (n.removesuffix(".weight") for n, s in facts.parameter_shapes.items() if s == shape)
    return next(name for name in names if name not in facts.linear_modules)


def ends_with(name: str, endings: Sequence[str]) -> bool:
    """Tell whether a dotted name ends with one of these, from the start of a part."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _in_layers(name: str, layers: tuple[int, ...] | None) -> bool:
    if layers is None:
        return True
    index = re.match(r".*\.[^.]*\.(\d+)\.", name)
    return index is not None and int(index.group(1)) in layers


def _matrix(facts: ModelFacts, module: str) -> tuple[int, int]:
    """Return (in_features, out_features); an embedding maps its rows to its columns."""
    if module in facts.linear_modules:
        return facts.linear_modules[module]
    rows, columns = facts.parameter_shapes[f"{module}.weight"]
    return rows, columns
