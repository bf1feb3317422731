"""When the learning rate, and with ReLoRA the adapter, starts anew."""

from newtune.config.rules.relora import PRUNED_OPTIMIZERS
from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.ledger import Ledger
from newtune.plan.parts import ReloraPlan, RestartPlan


def plan_restarts(config: RunConfig, ledger: Ledger) -> RestartPlan | None:
    """Return the restarts of the learning rate; None = there are none."""
    keys, jagged = config.adapter, config.training
    if config.relora_every is not None and keys.relora_steps:
        every, key = keys.relora_steps, "relora_steps"
    elif jagged.jagged_restart_steps is not None:
        every, key = jagged.jagged_restart_steps, "jagged_restart_steps"
    else:
        return None
    warmup, anneal = jagged.jagged_restart_warmup_steps, jagged.jagged_restart_anneal_steps
    if config.relora_every is not None:
        warmup = keys.relora_warmup_steps if keys.relora_warmup_steps is not None else warmup
        anneal = keys.relora_anneal_steps if keys.relora_anneal_steps is not None else anneal
    plan = RestartPlan(every, warmup or 0, anneal or 0)
    return ledger.decide("training.schedule.restarts", plan, f"{key}: {every}")


def plan_relora(
    config: RunConfig, world: World, total_steps: int, ledger: Ledger
) -> ReloraPlan | None:
    """Return the rounds of ReLoRA; None = it is off.

    Raises:
        ConfigError: on several processes, each of which would start its own round.
    """
    every = config.relora_every
    if every is None:
        return None
    if world.size > 1:
        message = f"trains on one process, not on {world.size}"
        raise ConfigError([Problem("relora_steps", message, "Leave ReLoRA out.")])
    keys = config.adapter
    rounds = max(1, -(-total_steps // every))
    plain = config.training.optimizer in PRUNED_OPTIMIZERS
    method = keys.relora_prune_method or ("magnitude" if plain else "reset")
    plan = ReloraPlan(every, method, keys.relora_prune_ratio)
    why = (
        f"{rounds} rounds of {every} steps, the result one LoRA of rank {rounds * keys.lora_r}; "
        f"between them the optimizer's state: {method}"
    )
    return ledger.decide("training.relora", plan, why)
