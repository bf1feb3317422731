"""The training part of the plan: batches, steps, optimizer, schedule, evaluation, checkpoints."""

import ast
from collections.abc import Mapping
from typing import Any

from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.attention import flattens
from newtune.plan.facts import DataFacts
from newtune.plan.ledger import Ledger
from newtune.plan.parts import (
    EvaluationPlan,
    LoraPlusPlan,
    OptimizerPlan,
    SavePlan,
    SchedulePlan,
    StepPlan,
    TrackerPlan,
    TrainingPlan,
)
from newtune.plan.restarts import plan_relora, plan_restarts
from newtune.plan.sequences import shares_sequences
from newtune.plan.sharing import ParallelPlan
from newtune.plan.steps import cadence, resolve_batch_size, resolve_warmup, steps_of_epochs


def plan_training(
    config: RunConfig,
    world: World,
    data: DataFacts,
    *,
    attention: str,
    trackers: TrackerPlan,
    parallel: ParallelPlan,
    ledger: Ledger,
) -> TrainingPlan:
    """Return everything the training loop needs.

    Raises:
        ConfigError: batch sizes that do not divide; a run of no steps.
    """
    keys = config.training
    steps = _plan_steps(config, world.size // parallel.mesh.sharers, data, ledger)
    evaluation = _plan_evaluation(config, data, steps, ledger)
    logging_steps = keys.logging_steps
    if logging_steps is None:
        logging_steps = ledger.decide(
            "training.logging_steps",
            max(1, min(10, steps.total_steps // 200)),
            f"not given: about 200 lines over {steps.total_steps} steps, at most 10 steps apart",
        )
    flatten, why = flattens(
        attention,
        packed=shares_sequences(config),
        batch_flattening=bool(config.sequence.batch_flattening),
    )
    return TrainingPlan(
        steps=steps,
        optimizer=_plan_optimizer(config, ledger),
        schedule=_plan_schedule(config, steps, ledger),
        evaluation=evaluation,
        save=_plan_saving(config, steps, evaluation, ledger),
        trackers=trackers,
        logging_steps=logging_steps,
        neftune_noise_alpha=keys.neftune_noise_alpha,
        loss_watchdog_threshold=keys.loss_watchdog_threshold,
        loss_watchdog_patience=keys.loss_watchdog_patience or 3,
        dataloader_workers=0 if data.streamed else config.data.dataloader_num_workers or 0,
        dataloader_pin_memory=_pin_memory(config, world, ledger),
        dataloader_prefetch_factor=(
            None if data.streamed else config.data.dataloader_prefetch_factor
        ),
        flatten=ledger.decide("training.flatten", flatten, why),
        relora=plan_relora(config, world, steps.total_steps, ledger),
        parallel=parallel,
    )


def _pin_memory(config: RunConfig, world: World, ledger: Ledger) -> bool:
    asked = config.data.dataloader_pin_memory
    if asked and world.device == "cpu":
        ledger.notice("`dataloader_pin_memory` has no effect in this run: it is for GPUs.")
    return world.device != "cpu" and asked is not False


def _plan_steps(config: RunConfig, parts: int, data: DataFacts, ledger: Ledger) -> StepPlan:
    """Return batches and steps; a step's rows are dealt out into `parts`."""
    keys = config.training
    try:
        batch = resolve_batch_size(
            keys.micro_batch_size,
            keys.gradient_accumulation_steps,
            keys.batch_size,
            world_size=parts,
        )
    except ValueError as error:
        raise ConfigError([Problem("batch_size", str(error))]) from error
    ledger.decide("training.steps.rows_per_device", batch.rows_per_device, batch.reason)
    ledger.decide("training.steps.accumulation", batch.accumulation, batch.reason)
    steps_in_epoch = steps_of_epochs(
        data.packs_in_epoch,
        rows_per_step=batch.rows_per_device * batch.accumulation * parts,
        epochs=keys.num_epochs,
        max_steps=keys.max_steps,
    )
    total = sum(steps_in_epoch)
    if keys.max_steps is None:
        why = f"num_epochs {keys.num_epochs:g}: " + " + ".join(map(str, steps_in_epoch[:8]))
    else:
        why = f"max_steps, which wins over num_epochs: {len(steps_in_epoch)} epoch(s) are entered"
    if data.streamed:
        why = "max_steps: a stream has no end"
    ledger.decide("training.steps.total_steps", total, why)
    return StepPlan(
        rows_per_device=batch.rows_per_device,
        accumulation=batch.accumulation,
        world_size=parts,
        epochs=keys.num_epochs,
        steps_in_epoch=steps_in_epoch,
        seed=keys.seed,
    )


def _plan_optimizer(config: RunConfig, ledger: Ledger) -> OptimizerPlan:
    keys = config.training
    assert keys.learning_rate is not None  # config/rules/training.py: learning_rate_is_needed
    return OptimizerPlan(
        name=keys.optimizer,
        learning_rate=keys.learning_rate,
        weight_decay=keys.weight_decay,
        beta1=keys.adam_beta1,
        beta2=keys.adam_beta2,
        epsilon=keys.adam_epsilon,
        arguments=_optimizer_arguments(keys.optim_args),
        max_grad_norm=keys.max_grad_norm,
        embedding_learning_rate=keys.embedding_lr,
        lora_plus=_plan_lora_plus(config, keys.learning_rate, ledger),
    )


def _plan_lora_plus(config: RunConfig, rate: float, ledger: Ledger) -> LoraPlusPlan | None:
    keys = config.adapter
    if not keys.adapter or keys.loraplus_lr_ratio is None:
        return None
    plan = LoraPlusPlan(keys.loraplus_lr_ratio, keys.loraplus_lr_embedding)
    why = (
        f"loraplus_lr_ratio: A at {rate:g}, B at {rate * plan.ratio:g}, "
        f"adapted embeddings at {plan.embedding_learning_rate:g}"
    )
    return ledger.decide("training.optimizer.lora_plus", plan, why)


def _optimizer_arguments(given: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return `optim_args` as a mapping; the field also writes it `key=value,key=value`."""
    if given is None or isinstance(given, Mapping):
        return given or {}
    pairs = [part.partition("=") for part in given.split(",") if part.strip()]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise ConfigError(
            [Problem("optim_args", f"`{wrong[0]}` is not `key=value`.", "Or give a mapping.")]
        )
    return {key.strip(): _number_or_text(value.strip()) for key, _, value in pairs}


def _number_or_text(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _plan_schedule(config: RunConfig, steps: StepPlan, ledger: Ledger) -> SchedulePlan:
    keys = config.training
    warmup, why = resolve_warmup(keys.warmup_steps, keys.warmup_ratio, steps.total_steps)
    return SchedulePlan(
        name=keys.lr_scheduler,
        warmup_steps=ledger.decide("training.schedule.warmup_steps", warmup, why),
        quadratic_warmup=bool(keys.lr_quadratic_warmup),
        min_ratio=keys.cosine_min_lr_ratio,
        constant_ratio=keys.cosine_constant_lr_ratio,
        arguments=keys.lr_scheduler_kwargs or {},
        restarts=plan_restarts(config, ledger),
    )


def _plan_evaluation(
    config: RunConfig, data: DataFacts, steps: StepPlan, ledger: Ledger
) -> EvaluationPlan:
    keys = config.evaluation
    at_steps, why = cadence(
        keys.eval_strategy, keys.eval_steps, keys.evals_per_epoch, steps.steps_in_epoch
    )
    if not data.eval_examples:
        at_steps, why = frozenset(), "there is no held-out data"
    if keys.eval_on_start and data.eval_examples:
        at_steps |= {0}
        why += ", and before the first step"
    ledger.decide("training.evaluation.at_steps", at_steps, why)
    metric = keys.metric_for_best_model or "eval_loss"
    answered = frozenset({0, steps.total_steps})
    why = "before the first step and after the last"
    if "exact_match" in metric:
        answered |= at_steps
        why += ", and at every evaluation: metric_for_best_model needs it"
    ledger.decide("training.evaluation.generate_at_steps", answered, why)
    greater = keys.greater_is_better
    return EvaluationPlan(
        at_steps=at_steps,
        rows_per_device=keys.eval_batch_size or steps.rows_per_device,
        generate=bool(keys.eval_generate and data.eval_examples),
        generate_at_steps=answered,
        max_new_tokens=keys.eval_max_new_tokens,
        generate_examples=keys.eval_generate_samples,
        early_stopping_patience=keys.early_stopping_patience,
        early_stopping_threshold=keys.early_stopping_threshold,
        best_metric=metric if metric.startswith("eval_") else f"eval_{metric}",
        greater_is_better=not metric.endswith("loss") if greater is None else greater,
    )


def _plan_saving(
    config: RunConfig, steps: StepPlan, evaluation: EvaluationPlan, ledger: Ledger
) -> SavePlan:
    keys = config.output
    load_best = bool(config.evaluation.load_best_model_at_end)
    on_best = keys.save_strategy == "best"
    if on_best:
        at_steps, why = frozenset[int](), "save_strategy best: when an evaluation is the best yet"
    else:
        at_steps, why = cadence(
            keys.save_strategy, keys.save_steps, keys.saves_per_epoch, steps.steps_in_epoch
        )
    if load_best and not on_best:
        at_steps |= evaluation.at_steps - {0}
        why += ", and after each evaluation (load_best_model_at_end)"
    if keys.save_first_step:
        at_steps |= {1}
        why += ", and after the first step"
    return SavePlan(
        at_steps=ledger.decide("training.save.at_steps", at_steps, why),
        on_best=on_best,
        keep=keys.save_total_limit,
        weights_only=bool(keys.save_only_model),
        load_best_at_end=load_best,
    )
