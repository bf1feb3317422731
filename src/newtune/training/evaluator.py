"""What is measured on held-out data during a run, and after which steps."""

from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from newtune.distributed.group import ALONE, Group
from newtune.plan.parts import Plan
from newtune.training.checkpoint import Model
from newtune.training.evaluation import (
    Answers,
    GenerationResult,
    LossSum,
    evaluate_generation,
    evaluate_loss,
    generation_tasks,
    in_turn,
)
from newtune.training.feed import TrainingData
from newtune.types import Batch


class Evaluator:
    """Measures the loss and the generated answers of one model, each at its own steps."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        data: TrainingData,
        *,
        loss_sum: LossSum,
        answer: Answers,
        stop_ids: Sequence[int],
        group: Group = ALONE,
    ) -> None:
        evaluation = plan.training.evaluation
        limit = evaluation.generate_examples
        self.model = model
        self.tokenizer = tokenizer
        self.has_batches = data.evaluation is not None
        self.loss_sum = loss_sum
        self.answer = answer
        self.group = group
        self.tasks = (
            generation_tasks(data.eval_examples, stop_ids=stop_ids, limit=limit)
            if evaluation.generate
            else []
        )
        self.generations: dict[int, GenerationResult] = {}
        """Step → the answers generated after it in this session."""
        self.loss_steps = evaluation.at_steps if self.has_batches else frozenset()
        self.generation_steps = _generation_steps(plan) if self.tasks else frozenset()

    @property
    def steps(self) -> frozenset[int]:
        """The steps after which something is measured."""
        return self.loss_steps | self.generation_steps

    def kinds_of_steps(self) -> dict[int, str]:
        """Return step → what is measured after it, alike for evaluations that take alike."""
        kinds = dict.fromkeys(self.loss_steps, "loss")
        for step in self.generation_steps:
            kinds[step] = "loss and answers" if step in self.loss_steps else "answers"
        return kinds

    def measure(
        self,
        step: int,
        batches: Callable[[], Iterable[Batch]],
        *,
        everything: bool,
        together: bool = False,
    ) -> dict[str, float]:
        """Return what is due after a step, or `everything`; `batches` lie on the device.

        `together`: a forward needs every process, so that all answer all the questions.
        """
        metrics: dict[str, float] = {}
        if self.has_batches and (everything or step in self.loss_steps):
            metrics |= evaluate_loss(self.model, batches(), self.loss_sum, self.group)
        if self.tasks and (everything or step in self.generation_steps):
            metrics |= self._answer_all(step, ALONE if together else self.group)
        return metrics

    def _answer_all(self, step: int, group: Group) -> dict[str, float]:
        mine = evaluate_generation(
            self.tasks[group.rank :: group.size],
            self.answer,
            lambda ids: str(self.tokenizer.decode(ids, skip_special_tokens=True)),
        )
        samples = in_turn(group.gather(mine.samples))
        result = GenerationResult(tuple(samples))
        self.generations[step] = result
        return {"eval_exact_match": result.exact_match, "eval_answers": len(result.samples)}


def _generation_steps(plan: Plan) -> frozenset[int]:
    evaluation = plan.training.evaluation
    if evaluation.generate_at_steps is not None:
        return evaluation.generate_at_steps
    return evaluation.at_steps | {0, plan.training.steps.total_steps}
