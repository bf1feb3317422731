import math

import numpy as np
import pytest
import torch

from newtune.errors import ConfigError
from newtune.training.evaluation import (
    Sample,
    Task,
    evaluate_generation,
    evaluate_loss,
    generation_tasks,
)
from newtune.types import IGNORE_INDEX, Example
from runs import ListedBatches, TinyRun, example, packed, plain_loss_sum

X = IGNORE_INDEX


def of(ids, labels):
    return Example(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32))


def test_the_last_trained_span_is_the_question_asked():
    conversation = of([10, 11, 12, 5, 13, 14, 15, 5, 9], [X, 11, 12, 5, X, X, 15, 5, X])
    assert generation_tasks([conversation], stop_ids=[5], limit=None) == [
        Task((10, 11, 12, 5, 13, 14), (15,))
    ]


def test_the_reference_ends_before_its_first_stop():
    conversation = of([10, 20, 21, 5, 9], [X, 20, 21, 5, 9])
    assert generation_tasks([conversation], stop_ids=[5], limit=None)[0].reference == (20, 21)


def test_examples_without_trained_tokens_and_beyond_the_limit_are_left_out():
    examples = [of([1, 2], [X, X]), of([1, 2], [X, 2]), of([1, 3], [X, 3])]
    tasks = generation_tasks(examples, stop_ids=[], limit=2)
    assert tasks == [Task((1,), (2,))]


def test_exact_match_ignores_outer_space_only():
    assert Sample("q", " a b", "a b\n").is_exact
    assert not Sample("q", "a b", "a  b").is_exact


def test_the_score_is_the_share_of_exact_answers():
    tasks = [Task((1,), (2,)), Task((3,), (4,))]
    result = evaluate_generation(tasks, lambda prompts: [[2], [9]], lambda ids: str(list(ids)))
    assert result.exact_match == 0.5
    assert result.samples[1] == Sample("[3]", "[4]", "[9]")


def test_the_loss_is_weighted_by_tokens_over_the_whole_set(tmp_path):
    model, batches = TinyRun(tmp_path).model().eval(), packed(3)
    found = evaluate_loss(model, [batches[i] for i in range(3)], plain_loss_sum)
    with torch.no_grad():
        parts = [plain_loss_sum(model, batches[i]) for i in range(3)]
    expected = sum(float(total) for total, _ in parts) / sum(int(count) for _, count in parts)
    assert found["eval_loss"] == pytest.approx(expected)
    assert found["eval_perplexity"] == pytest.approx(math.exp(expected))
    assert found["eval_trained_tokens"] == sum(int(count) for _, count in parts)


class Teacher:
    """Answers as the references have it, but only from its second call on."""

    def __init__(self, examples):
        self.answers = {
            tuple(int(t) for t in e.input_ids[:4]): [int(t) for t in e.input_ids[4:]]
            for e in examples
        }
        self.calls = []

    def __call__(self, model, tokenizer, prompts, *, max_new_tokens, batch_size, stop_ids):
        assert not model.training
        assert not torch.is_grad_enabled()
        self.calls.append((len(prompts), max_new_tokens, tuple(stop_ids)))
        if len(self.calls) == 1:
            return [[] for _ in prompts]
        return [self.answers[tuple(prompt)] for prompt in prompts]


def make_run(root, **evaluation):
    examples = [example(n) for n in range(5)]
    teacher = Teacher(examples)
    run = TinyRun(
        root,
        steps=3,
        eval_examples=examples,
        evaluation={"generate": True, **evaluation},
        build={"generate": teacher},
    )
    return run, teacher


def test_answers_are_generated_before_and_after(tmp_path):
    run, teacher = make_run(tmp_path)
    trainer = run.trainer()
    trainer.train()
    scores = {
        line["step"]: line["eval_exact_match"] for line in run.metrics() if "eval_answers" in line
    }
    assert scores == {0: 0.0, 3: 1.0}
    assert teacher.calls == [(5, 8, (2,))] * 2
    assert len(trainer.evaluator.generations[3].samples) == 5
    assert "exact match 100.0%" in run.output.getvalue()


def test_the_plan_may_name_the_steps_and_the_number_of_answers(tmp_path):
    run, teacher = make_run(
        tmp_path, generate_at_steps=frozenset({1}), generate_examples=2, max_new_tokens=3
    )
    run.trainer().train()
    assert teacher.calls == [(2, 3, (2,))]


def test_evaluating_outside_of_a_run_measures_everything(tmp_path):
    run, _ = make_run(tmp_path)
    run.evaluation_batches = packed(2, first=500)
    metrics = run.trainer().evaluate()
    assert {"eval_loss", "eval_exact_match"} <= metrics.keys()


def test_a_metric_that_is_not_measured_is_refused(tmp_path):
    run = TinyRun(tmp_path, evaluation={"best_metric": "eval_exact_match"})
    with pytest.raises(ConfigError, match="not measured in this run"):
        run.trainer()


def test_a_model_that_learnt_its_answers_by_heart_scores(tmp_path):
    """The whole way: train on few rows, answer greedily, compare."""
    numbers = [[[n] for n in range(4)]] * 40
    run = TinyRun(
        tmp_path,
        steps=40,
        rows=4,
        train=ListedBatches(numbers),
        eval_examples=[example(n, answer=3 + n % 4) for n in range(4)],
        evaluation={"generate": True, "max_new_tokens": 3},
        build={"stop_ids": [383]},
    )
    trainer = run.trainer()
    trainer.train()
    samples = trainer.evaluator.generations[40].samples
    assert run.metrics()[0]["eval_exact_match"] == 0.0
    assert samples[0].is_exact
