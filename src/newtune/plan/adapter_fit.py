"""What an adapter's keys name must be there: layers, modules, parameters."""

from collections.abc import Iterable, Iterator

from newtune.errors import ConfigError, Problem
from newtune.lookup import nearest
from newtune.plan.facts import ModelFacts
from newtune.plan.parts import AdapterPlan
from newtune.plan.targets import above, ends_with


def require_fitting(facts: ModelFacts, adapter: AdapterPlan) -> None:
    """Refuse what PEFT would pass over without a word.

    Raises:
        ConfigError: a layer, module or parameter that the model does not have.
    """
    problems = [*_of_layers(facts, adapter), *_of_modules(facts, adapter)]
    parameters = adapter.target_parameters
    problems += _unknown("lora_target_parameters", parameters, facts.parameter_shapes)
    if problems:
        raise ConfigError(problems)


def _of_layers(facts: ModelFacts, adapter: AdapterPlan) -> Iterator[Problem]:
    key = "peft_layers_to_transform"
    if adapter.layers is None:
        return
    if isinstance(adapter.target_modules, str):
        message = "excludes a regex in `lora_target_modules`, which can say itself which layers"
        yield Problem(key, message, r"Example: `model\.layers\.[01]\..*q_proj`.")
    for layer in adapter.layers:
        if not 0 <= layer < facts.layers:
            message = f"got {layer}; the model's layers are 0 to {facts.layers - 1}"
            yield Problem(key, message)


def _of_modules(facts: ModelFacts, adapter: AdapterPlan) -> Iterator[Problem]:
    modules = {facts.head_name, *(m for name in facts.parameter_shapes for m in above(name))}
    return _unknown("lora_modules_to_save", adapter.modules_to_save, modules)


def _unknown(key: str, given: Iterable[str], names: Iterable[str]) -> Iterator[Problem]:
    known = {name.split(".", depth)[-1] for name in names for depth in range(name.count(".") + 1)}
    for name in given:
        if not any(ends_with(there, [name]) for there in names):
            closest = nearest(name, (one for one in known if not one[0].isdigit()))
            hint = f"Did you mean `{closest}`?" if closest else ""
            yield Problem(key, f"`{name}` is nothing that this model has", hint)
