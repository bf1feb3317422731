"""When the held-out data is evaluated, how, and what counts as best."""

from typing import Annotated, Literal

from pydantic import Field

from newtune.config.section import NotNegativeFloat, Positive, Section, Strings


class EvaluationSection(Section):
    """Evaluation during and after the run."""

    eval_batch_size: Positive | None = None
    """Rows per device and forward pass in evaluation. Empty: `micro_batch_size`."""
    eval_steps: Positive | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate every so many steps; below 1, a share of the run. Excludes `evals_per_epoch`. Empty
    with held-out data: at the end of each epoch."""
    evals_per_epoch: Positive | None = None
    """Evaluations per epoch, evenly spaced, the last at its end. Excludes `eval_steps`."""
    eval_strategy: Literal["no", "steps", "epoch"] | None = None
    """`no`, `steps` (with `eval_steps`) or `epoch`. Empty: read off `eval_steps`."""
    eval_on_start: bool | None = None
    """Evaluate before the first step."""
    eval_generate: bool = False
    """Answer held-out rows by greedy generation and score them by exact match, before and after
    training."""
    eval_max_new_tokens: Positive = 64
    """Most tokens of an answer of `eval_generate`."""
    eval_generate_samples: Positive | None = None
    """How many held-out rows `eval_generate` answers. Empty: all."""
    metric_for_best_model: str | None = None
    """Metric that decides which checkpoint is best. Empty: `eval_loss`."""
    greater_is_better: bool | None = None
    """A greater metric is better. Empty: unless the metric is a loss."""
    load_best_model_at_end: bool = False
    """End with the best checkpoint's weights instead of the last. Needs held-out data."""
    early_stopping_patience: Positive | None = None
    """Stop after so many evaluations in a row without improvement. Needs held-out data."""
    early_stopping_threshold: NotNegativeFloat = 0.0
    """Least improvement that counts for `early_stopping_patience`."""
    do_causal_lm_eval: bool | None = None
    """Score generated text with `eval_causal_lm_metrics`."""
    eval_causal_lm_metrics: Strings | None = None
    """Metrics of `do_causal_lm_eval`: sacrebleu, comet, ter, chrf, perplexity."""
    do_bench_eval: bool | None = None
    """Evaluate on a benchmark during the run."""
    bench_dataset: str | None = None
    """Benchmark of `do_bench_eval`."""
    bench_split: str | None = None
    """Split of `bench_dataset`."""
    lm_eval_tasks: Strings | None = None
    """Tasks of lm-evaluation-harness to run after training."""
    lm_eval_batch_size: Positive | None = None
    """Batch size of `lm_eval_tasks`."""
    lm_eval_post_train: bool | None = None
    """Run `lm_eval_tasks` when training has ended."""
    lm_eval_model: str | None = None
    """Model of `lm_eval_tasks`."""
    eval_table_size: int | None = None
    """How many predictions were sent to the tracker. `eval_generate` writes them to the run's
    folder instead."""
    generate_samples: bool | None = None
    """Generate text during the run, to look at."""
    num_generation_samples: Positive | None = None
    """How many texts `generate_samples` makes."""
    generation_max_new_tokens: Positive | None = None
    """Most tokens of a text of `generate_samples`."""
    generation_temperature: NotNegativeFloat | None = None
    """Temperature of `generate_samples`."""
    generation_top_p: float | None = None
    """Nucleus of `generate_samples`."""
    generation_top_k: Positive | None = None
    """Candidates of `generate_samples`."""
    generation_prompt_ratio: float | None = None
    """Share of a row that `generate_samples` takes as the prompt."""
    generation_do_sample: bool | None = None
    """Sample in `generate_samples`."""
