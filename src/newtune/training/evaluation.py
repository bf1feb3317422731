"""Evaluation on held-out data: the loss of all batches, and greedy answers by exact match."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from newtune.distributed.group import ALONE, Group
from newtune.training.feed import Examples
from newtune.training.metrics import perplexity
from newtune.types import IGNORE_INDEX, Batch, Example

T = TypeVar("T")

GENERATION_ROWS = 32
"""Prompts answered at a time."""


class LossSum(Protocol):
    """The loss of one batch: its sum over the trained tokens in nats, and their number."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return `(sum, count)`; the sum carries the gradient."""
        ...


class Answers(Protocol):
    """Greedy answers to prompts, both as token ids."""

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the new tokens of each prompt, without prompt."""
        ...


class Decode(Protocol):
    """Token ids to text, special tokens left out."""

    def __call__(self, ids: Sequence[int]) -> str:
        """Return the text."""
        ...


@dataclass(frozen=True)
class Task:
    """A held-out example as a question: what the model sees and what it should answer."""

    prompt: tuple[int, ...]
    reference: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One answered question, as text."""

    prompt: str
    reference: str
    answer: str

    @property
    def is_exact(self) -> bool:
        """Tell whether the answer is the reference, outer whitespace aside."""
        return self.answer.strip() == self.reference.strip()


@dataclass(frozen=True)
class GenerationResult:
    """The answers to all questions."""

    samples: tuple[Sample, ...]

    @property
    def exact_match(self) -> float:
        """Return the share of exact answers, 0 to 1."""
        return sum(sample.is_exact for sample in self.samples) / max(1, len(self.samples))


@torch.no_grad()
def evaluate_loss(
    model: nn.Module, batches: Iterable[Batch], loss_sum: LossSum, group: Group = ALONE
) -> dict[str, float]:
    """Return `eval_loss` (nats per trained token over the whole set) and `eval_perplexity`.

    `batches` are this process's own; the numbers are those of all processes.
    """
    total, count = 0.0, 0.0
    for batch in batches:
        batch_sum, batch_count = loss_sum(model, batch)
        total += batch_sum.item()
        count += int(batch_count.item())
    total, count = group.sums([total, count])
    loss = total / max(1, count)
    return {
        "eval_loss": loss,
        "eval_perplexity": perplexity(loss),
        "eval_trained_tokens": int(count),
    }


def generation_tasks(
    examples: Examples, *, stop_ids: Sequence[int], limit: int | None
) -> list[Task]:
    """Turn examples into questions: the last trained span of each is the expected answer.

    The reference ends before the first of `stop_ids`. Examples without a trained token are left
    out.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    tasks = (_task(examples[index], set(stop_ids)) for index in range(count))
    return [task for task in tasks if task is not None]


def in_turn(parts: Sequence[Sequence[T]]) -> list[T]:
    """Join what was dealt out one by one: [[a, c], [b, d]] → [a, b, c, d]."""
    joined: list[T | None] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        joined[number :: len(parts)] = part
    return cast("list[T]", joined)


def _task(example: Example, stop_ids: set[int]) -> Task | None:
    trained = [index for index, label in enumerate(example.labels) if label != IGNORE_INDEX]
    if not trained:
        return None
    start = end = trained[-1]
    while start > 0 and example.labels[start - 1] != IGNORE_INDEX:
        start -= 1
    span = [int(token) for token in example.input_ids[start : end + 1]]
    stop = next((index for index, token in enumerate(span) if token in stop_ids), len(span))
    return Task(tuple(int(token) for token in example.input_ids[:start]), tuple(span[:stop]))


def evaluate_generation(
    tasks: Sequence[Task], answers: Answers, decode: Decode
) -> GenerationResult:
    """Answer all questions and compare with the references."""
    replies = answers([task.prompt for task in tasks])
    return GenerationResult(
        tuple(
            Sample(decode(task.prompt), decode(task.reference), decode(reply))
            for task, reply in zip(tasks, replies, strict=True)
        )
    )
