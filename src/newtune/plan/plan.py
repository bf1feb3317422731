"""RunConfig + facts + World → Plan: every derived number with its reason.

This is the only place where training, model and output keys are read, so that a key which nothing
here reads is found before weights load.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.adapter import plan_adapter
from newtune.plan.facts import DataFacts, ModelFacts
from newtune.plan.ledger import Ledger
from newtune.plan.model import plan_family, plan_model, require_positions
from newtune.plan.output import plan_output
from newtune.plan.parallel import plan_parallel
from newtune.plan.parts import AdapterPlan, ModelPlan, Plan, StepPlan, TrainingPlan
from newtune.plan.placed import place
from newtune.plan.processes import processes_of
from newtune.plan.quantization import require_trainable
from newtune.plan.targets import count_trainable
from newtune.plan.trackers import plan_trackers
from newtune.plan.training import plan_training
from newtune.plan.zero import Known, plan_zero, read_zero


@dataclass(frozen=True)
class ModelSide:
    """The part of a plan that needs no data: made first, so that its errors come first."""

    model: ModelPlan
    adapter: AdapterPlan | None
    facts: ModelFacts
    ledger: Ledger
    family: str | None
    """Whose conventions the tokenizer follows because a flag says so; None = its own."""


def plan_model_side(
    config: RunConfig,
    world: World,
    facts: ModelFacts,
    *,
    stored_adapter: AdapterPlan | None = None,
    skeleton: Callable[[], PreTrainedModel] | None = None,
    trains: bool = False,
) -> ModelSide:
    """Return how model and adapter are loaded.

    `stored_adapter`: what the adapter of `lora_model_dir` is, which then is the run's. `skeleton`
    builds the model without weights, to be spread over devices; `trains`: it will be trained so.

    Raises:
        ConfigError: sequence_len beyond the model's positions; a device that cannot do the
            precision; an adapter that matches no module.
        SetupError: an attention implementation whose package or device is missing.
    """
    ledger = Ledger()
    require_positions(config, facts)
    family = plan_family(config, facts, ledger)
    model = plan_model(config, world, facts, ledger)
    if skeleton is not None:
        model = place(model, config, world, facts, ledger, skeleton, trains=trains)
    if world.visible_gpus > 1 and world.size == 1 and model.placement is None:
        count, why = processes_of(config, world.visible_gpus)
        ledger.notice(
            f"{world.visible_gpus} GPUs are visible; this is the plan of one process, "
            f"{world.device}. `newtune train` starts {count} by itself: {why}."
        )
    adapter = plan_adapter(config, facts, ledger, stored_adapter)
    require_trainable(model.quantization, adapter)
    return ModelSide(model, adapter, facts, ledger, family)


def make_plan(
    config: RunConfig, world: World, side: ModelSide, data: DataFacts, *, new_tokens: int = 0
) -> Plan:
    """Return the whole plan; `new_tokens` is how many tokens the configuration adds.

    Raises:
        ConfigError: batch sizes that do not divide, an empty run.
    """
    ledger = side.ledger
    training = _plan_training(config, world, side, data)
    if training.relora is not None and new_tokens:
        message = f"excludes training the rows of {new_tokens} added tokens, which start but once"
        hint = "Use tokens that the tokenizer has, or leave ReLoRA out."
        raise ConfigError([Problem("relora_steps", message, hint)])
    steps = training.steps
    tokens_per_step = ledger.decide("tokens_per_step", *_tokens_per_step(data, steps))
    trainable = count_trainable(
        side.facts, side.adapter, side.model.unfrozen_parameters, new_tokens
    )
    ledger.decide(
        "trainable_parameters",
        trainable,
        f"{trainable / side.facts.parameters:.2%} of {side.facts.parameters:,}",
    )
    return Plan(
        model=side.model,
        adapter=side.adapter,
        training=training,
        output=plan_output(config, ledger),
        model_facts=side.facts,
        data_facts=data,
        trainable_parameters=trainable,
        tokens_per_step=tokens_per_step,
        notices=ledger.notices,
        reasons=dict(ledger.reasons),
    )


def _plan_training(
    config: RunConfig, world: World, side: ModelSide, data: DataFacts
) -> TrainingPlan:
    ledger = side.ledger
    training = plan_training(
        config,
        world,
        data,
        attention=side.model.attention,
        trackers=plan_trackers(config.tracking, ledger),
        parallel=plan_parallel(
            config,
            world,
            ledger,
            facts=side.facts,
            adapter=side.adapter,
            quantization=side.model.quantization,
            attention=side.model.attention,
        ),
        ledger=ledger,
    )
    zero = read_zero(config)
    if zero is not None:
        known = Known(
            steps=training.steps,
            optimizer=training.optimizer,
            schedule=training.schedule,
            precision=side.model.precision,
            facts=side.facts,
            quantization=side.model.quantization,
        )
        parallel = plan_zero(config, zero, known, world, ledger)
        training = replace(training, parallel=parallel)
    return training


def _tokens_per_step(data: DataFacts, steps: StepPlan) -> tuple[float, str]:
    """Return the tokens of a step on average, and why."""
    if data.sequence_tokens is not None:
        sequence = data.sequence_tokens
        why = f"about {sequence:g} tokens in a sequence, by the stream's first rows"
        return sequence * steps.rows_per_step, f"{why}, × {steps.rows_per_step} per step"
    sequences = data.packs_in_epoch(0)
    return (
        data.tokens / max(1, sequences) * steps.rows_per_step,
        f"{data.tokens} tokens in {sequences} sequences × {steps.rows_per_step} per step",
    )


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values for plan.json, the reasons beside them."""
    values = asdict(plan)
    values["data_facts"].pop("packs_in_epoch")
    if plan.data_facts.streamed:  # unknown, not none
        unknown = dict.fromkeys(("train_examples", "tokens", "trained_tokens"))
        values["data_facts"] |= unknown
    values["model_facts"].pop("parameter_shapes")
    values["model_facts"].pop("linear_modules")
    values["model_facts"].pop("stored_names")
    values["model_facts"].pop("routers")
    values["model_facts"].pop("taken_for_experts")
    values["training"]["steps"]["total_steps"] = plan.training.steps.total_steps
    values["training"]["steps"]["rows_per_step"] = plan.training.steps.rows_per_step
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
