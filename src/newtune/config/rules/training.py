"""Rules about training, evaluation and checkpoints."""

from collections.abc import Iterator

from newtune.config.choices import (
    OPTIMIZERS,
    REFUSED_OPTIMIZERS,
    REFUSED_SCHEDULES,
    SCHEDULES,
    SCHEDULES_WITHOUT_FLOOR,
)
from newtune.config.rules.data import has_held_out_data
from newtune.config.rules.rule import about, known_name
from newtune.config.run import RunConfig
from newtune.errors import Problem

# Training


@about("learning_rate")
def learning_rate_is_needed(config: RunConfig) -> Iterator[Problem]:
    """`learning_rate` is required."""
    if config.training.learning_rate is None:
        hint = "About 2e-4 fits LoRA, 1e-5 full fine-tuning."
        yield Problem("learning_rate", "is required", hint)


@about("micro_batch_size", "gradient_accumulation_steps", "batch_size")
def two_batch_numbers(config: RunConfig) -> Iterator[Problem]:
    """Two of the three batch numbers are needed; accumulation is 1 beside `micro_batch_size`."""
    keys = ("micro_batch_size", "gradient_accumulation_steps", "batch_size")
    missing = [key for key in keys if getattr(config.training, key) is None]
    if len(missing) > 1 and "micro_batch_size" in missing:
        names = ", ".join(f"`{key}`" for key in keys)
        hint = "For instance `micro_batch_size: 2` and `gradient_accumulation_steps: 4`."
        yield Problem(missing[0], f"two of {names} are needed", hint)


@about("micro_batch_size", "gradient_accumulation_steps", "batch_size")
def batch_divides(config: RunConfig) -> Iterator[Problem]:
    """`batch_size` is a multiple of the others: it counts the rows of a whole step."""
    keys = config.training
    factor = (keys.micro_batch_size or 1) * (keys.gradient_accumulation_steps or 1)
    if keys.batch_size is not None and keys.batch_size % factor:
        parts = "micro_batch_size", "gradient_accumulation_steps"
        given = " × ".join(f"`{part}`" for part in parts if getattr(keys, part) is not None)
        yield Problem("batch_size", f"{keys.batch_size} is no multiple of {given} = {factor}")


@about("warmup_steps", "warmup_ratio")
def one_warmup(config: RunConfig) -> Iterator[Problem]:
    """`warmup_steps` and `warmup_ratio` exclude each other, 0 included."""
    if config.training.warmup_steps is not None and config.training.warmup_ratio is not None:
        yield Problem("warmup_ratio", "excludes `warmup_steps`", "Keep one of them.")


@about("optimizer")
def known_optimizer(config: RunConfig) -> Iterator[Problem]:
    """`optimizer` is a known name, and none of those that newtune refuses."""
    yield from known_name("optimizer", config.training.optimizer, OPTIMIZERS, REFUSED_OPTIMIZERS)


@about("lr_scheduler")
def known_schedule(config: RunConfig) -> Iterator[Problem]:
    """`lr_scheduler` is a known name, and none of those that newtune refuses."""
    yield from known_name(
        "lr_scheduler", config.training.lr_scheduler, SCHEDULES, REFUSED_SCHEDULES
    )


@about("lr_scheduler", "cosine_min_lr_ratio")
def floor_needs_a_schedule_that_falls(config: RunConfig) -> Iterator[Problem]:
    """`cosine_min_lr_ratio` is for schedules that fall; the constant ones have no floor."""
    keys = config.training
    if keys.cosine_min_lr_ratio is not None and keys.lr_scheduler in SCHEDULES_WITHOUT_FLOOR:
        yield Problem("cosine_min_lr_ratio", f"`lr_scheduler: {keys.lr_scheduler}` has no floor")


@about("lr_scheduler", "cosine_constant_lr_ratio")
def constant_part_is_of_a_cosine(config: RunConfig) -> Iterator[Problem]:
    """`cosine_constant_lr_ratio` is for the cosine schedules."""
    keys = config.training
    if keys.cosine_constant_lr_ratio is not None and not keys.lr_scheduler.startswith("cosine"):
        message = f"does not act on `lr_scheduler: {keys.lr_scheduler}`"
        yield Problem("cosine_constant_lr_ratio", message)


@about("cosine_constant_lr_ratio", "cosine_min_lr_ratio")
def constant_part_needs_a_floor(config: RunConfig) -> Iterator[Problem]:
    """`cosine_constant_lr_ratio` needs `cosine_min_lr_ratio`, the floor that is held."""
    keys = config.training
    if keys.cosine_constant_lr_ratio is not None and keys.cosine_min_lr_ratio is None:
        message = "needs `cosine_min_lr_ratio`, the floor that is held"
        yield Problem("cosine_constant_lr_ratio", message)


# Evaluation and checkpoints


@about("eval_steps", "evals_per_epoch")
def one_eval_cadence(config: RunConfig) -> Iterator[Problem]:
    """`eval_steps` and `evals_per_epoch` exclude each other."""
    if config.evaluation.eval_steps and config.evaluation.evals_per_epoch:
        yield Problem("evals_per_epoch", "excludes `eval_steps`", "Keep one of them.")


@about("eval_strategy", "eval_steps", "evals_per_epoch")
def eval_strategy_agrees(config: RunConfig) -> Iterator[Problem]:
    """`eval_strategy` agrees with `eval_steps` and `evals_per_epoch`, or is left empty."""
    keys = config.evaluation
    yield from _cadence_agrees("eval", keys.eval_strategy, keys.eval_steps, keys.evals_per_epoch)


@about("save_steps", "saves_per_epoch")
def one_save_cadence(config: RunConfig) -> Iterator[Problem]:
    """`save_steps` and `saves_per_epoch` exclude each other."""
    if config.output.save_steps and config.output.saves_per_epoch:
        yield Problem("saves_per_epoch", "excludes `save_steps`", "Keep one of them.")


@about("save_strategy", "save_steps", "saves_per_epoch")
def save_strategy_agrees(config: RunConfig) -> Iterator[Problem]:
    """`save_strategy` agrees with `save_steps` and `saves_per_epoch`, or is left empty."""
    keys = config.output
    yield from _cadence_agrees("save", keys.save_strategy, keys.save_steps, keys.saves_per_epoch)


@about("save_total_limit")
def some_checkpoint_is_kept(config: RunConfig) -> Iterator[Problem]:
    """`save_total_limit` is at least 1; left empty, all checkpoints are kept."""
    if config.output.save_total_limit == 0:
        hint = "Leave it empty to keep all; `save_strategy: no` writes none."
        yield Problem("save_total_limit", "`0` could mean all or none", hint)


@about(
    "early_stopping_patience",
    "load_best_model_at_end",
    "save_strategy",
    "eval_generate",
    "eval_strategy",
    "val_set_size",
    "test_datasets",
)
def best_needs_evaluation(config: RunConfig) -> Iterator[Problem]:
    """Early stopping, the best model and generated answers need held-out data that is evaluated."""
    keys, output = config.evaluation, config.output
    wants = {
        "early_stopping_patience": keys.early_stopping_patience is not None,
        "load_best_model_at_end": keys.load_best_model_at_end,
        "save_strategy": output.save_strategy == "best",
        "eval_generate": keys.eval_generate,
    }
    for key, wanted in wants.items():
        if not wanted:
            continue
        if not has_held_out_data(config):
            yield Problem(key, "needs held-out data", "Add `val_set_size` or `test_datasets`.")
        elif keys.eval_strategy == "no" and key != "eval_generate":
            yield Problem(key, "needs evaluation, which `eval_strategy: no` switches off")


@about("load_best_model_at_end", "save_strategy")
def best_needs_checkpoints(config: RunConfig) -> Iterator[Problem]:
    """`load_best_model_at_end` needs checkpoints."""
    if config.evaluation.load_best_model_at_end and config.output.save_strategy == "no":
        message = "needs checkpoints, which `save_strategy: no` switches off"
        yield Problem("load_best_model_at_end", message)


def _cadence_agrees(
    verb: str, strategy: str | None, steps: float | None, per_epoch: int | None
) -> Iterator[Problem]:
    """`VERB_strategy` against `VERB_steps` and `VERBs_per_epoch`."""
    key, counts = f"{verb}_strategy", f"{verb}s_per_epoch"
    if strategy == "steps" and steps is None and per_epoch is None:
        yield Problem(key, f"`steps` needs `{verb}_steps`")
    given = f"{verb}_steps" if steps is not None else counts if per_epoch is not None else ""
    if (given and strategy in ("no", "best")) or (strategy == "epoch" and steps is not None):
        hint = f"Keep `{given}` and leave `{key}` empty, or the reverse."
        yield Problem(key, f"`{strategy}` contradicts `{given}`", hint)
