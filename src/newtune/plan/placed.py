"""The placement that a configuration asks for, as a part of its model's plan."""

from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedModel

from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.facts import ModelFacts
from newtune.plan.ledger import Ledger
from newtune.plan.parts import ModelPlan
from newtune.plan.placement import Wish, plan_placement
from newtune.plan.weights import memory_of


def place(
    model: ModelPlan,
    config: RunConfig,
    world: World,
    facts: ModelFacts,
    ledger: Ledger,
    skeleton: Callable[[], PreTrainedModel],
    *,
    trains: bool,
) -> ModelPlan:
    """Return the model's plan with where its layers lie.

    Raises:
        ConfigError: the placement is not possible here, or not for training.
    """
    keys = config.placement
    wish = Wish(keys.device_map, keys.max_memory, keys.gpu_memory_limit)
    trains_base = trains and not config.adapter.adapter
    bytes_of = memory_of(
        facts,
        model.precision,
        model.quantization,
        unfrozen=model.unfrozen_parameters if trains_base else None,
        optimizer=config.training.optimizer,
    )
    placement, why = plan_placement(wish, world, skeleton, bytes_of, trains=trains)
    if wish.key and placement is None:
        ledger.notice(f"{why}; nothing is spread")
    if placement and model.quantization and {"cpu", "disk"} & set(placement.devices.values()):
        hint = "Leave the base as it is stored, or raise the limits."
        message = "leaves parts of a quantised base outside the GPUs, where they stay unquantised"
        raise ConfigError([Problem(str(wish.key), message, hint)])
    ledger.decide("model.placement", placement, why)
    return replace(model, placement=placement)
