"""The trainer of a plan, with everything it needs put together.

trainer = build_trainer(plan, model, tokenizer, data, run_dir)
trainer.train(resume_from_checkpoint=None)
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from newtune.distributed.group import ALONE, Group
from newtune.errors import ConfigError, Problem
from newtune.logs import notice
from newtune.lookup import did_you_mean
from newtune.model.generate import generate_greedy
from newtune.model.head import compute_loss_sum
from newtune.plan.parts import Plan
from newtune.run_dir import RunDir
from newtune.training.checkpoint import Model
from newtune.training.context import share_sequences
from newtune.training.evaluation import GENERATION_ROWS, Answers, LossSum
from newtune.training.evaluator import Evaluator
from newtune.training.feed import TrainingData
from newtune.training.trainer import NewtuneTrainer


class GenerateGreedy(Protocol):
    """`model.generate.generate_greedy`."""

    def __call__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        stop_ids: Sequence[int],
    ) -> list[list[int]]:
        """Return the new tokens of each prompt."""
        ...


def build_trainer(
    plan: Plan,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    data: TrainingData,
    run_dir: RunDir,
    *,
    loss_sum: LossSum = compute_loss_sum,
    generate: GenerateGreedy = generate_greedy,
    stop_ids: Sequence[int] | None = None,
    console: Console | None = None,
    group: Group = ALONE,
) -> NewtuneTrainer:
    """Return the trainer of a plan, for this process of the group.

    `stop_ids` end an answer in `eval_generate`; by default the model's and tokenizer's own.

    Raises:
        ConfigError: an optimizer, schedule or metric that does not exist.
        SetupError: a missing package.
    """
    expected = plan.training.steps.total_steps * plan.training.steps.accumulation
    if len(data.train) != expected:
        raise ValueError(f"{len(data.train)} micro-batches for a run of {expected}")
    _require_known_metric(plan)
    say_which_gpu(plan)
    if plan.training.parallel.mesh.context > 1:
        loss_sum = share_sequences(model, plan, group)
    if plan.training.evaluation.generate and stop_ids is None:
        stop_ids = end_ids(model, tokenizer)
    evaluator = Evaluator(
        plan,
        model,
        tokenizer,
        data,
        loss_sum=loss_sum,
        answer=_answering(plan, model, tokenizer, generate, stop_ids or ()),
        stop_ids=stop_ids or (),
        group=group,
    )
    return NewtuneTrainer(
        plan,
        model,
        tokenizer,
        data,
        run_dir,
        evaluator,
        console=console or Console(stderr=True, quiet=not group.is_main),
        group=group,
    )


def say_which_gpu(plan: Plan) -> None:
    """Tell, where several GPUs are visible, that one is used."""
    if plan.training.steps.world_size > 1 or plan.model.placement is not None:
        return
    if plan.model.device != "cpu" and (count := torch.cuda.device_count()) > 1:
        notice(f"{count} GPUs are visible; newtune trains on one of them, {plan.model.device}")


def end_ids(model: Model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer, by the tokenizer and the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})


def _require_known_metric(plan: Plan) -> None:
    evaluation = plan.training.evaluation
    known = ["eval_loss", "eval_perplexity"]
    if evaluation.generate:
        known.append("eval_exact_match")
    if evaluation.best_metric not in known:
        hint = did_you_mean(evaluation.best_metric, known)
        message = f"`{evaluation.best_metric}` is not measured in this run; known: {known}; {hint}"
        raise ConfigError([Problem("metric_for_best_model", message)])


def _answering(
    plan: Plan,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    generate: GenerateGreedy,
    stop_ids: Sequence[int],
) -> Answers:
    def answer(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=plan.training.evaluation.max_new_tokens,
            batch_size=GENERATION_ROWS,
            stop_ids=stop_ids,
        )

    return answer
