"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no memory.

A schedule returns the share of the peak rate at which update `step + 1` is made; `step` counts the
updates already made. During warm-up it is `step / warmup_steps` (its square with
`lr_quadratic_warmup`), so the first update of a warm-up is made at rate 0, as everywhere else in
the field. After it, `progress` runs from 0 to 1 at the end of the run.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial

from newtune.config.choices import REFUSED_SCHEDULES, SCHEDULES_WITHOUT_FLOOR
from newtune.errors import ConfigError, Problem
from newtune.lookup import did_you_mean
from newtune.plan.parts import RestartPlan, SchedulePlan

Shape = Callable[..., float]
"""`(progress, **arguments) -> share`, for the part of a run after warm-up."""


def constant(progress: float) -> float:
    """Stay at the peak."""
    return 1.0


def linear(progress: float, *, min_lr_ratio: float = 0.0) -> float:
    """Fall in a straight line to `min_lr_ratio`."""
    return max(min_lr_ratio, 1.0 - (1.0 - min_lr_ratio) * progress)


def cosine(progress: float, *, num_cycles: float = 0.5, min_lr_ratio: float = 0.0) -> float:
    """Fall along `num_cycles` of a cosine to `min_lr_ratio`; half a cycle ends at the floor."""
    share = 0.5 * (1.0 + math.cos(2.0 * math.pi * num_cycles * progress))
    return min_lr_ratio + (1.0 - min_lr_ratio) * share


def cosine_with_restarts(
    progress: float, *, num_cycles: int = 1, min_lr_ratio: float = 0.0
) -> float:
    """Fall along half a cosine `num_cycles` times, starting anew at the peak each time."""
    if progress >= 1.0:
        return min_lr_ratio
    share = 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0)))
    return min_lr_ratio + (1.0 - min_lr_ratio) * share


def polynomial(progress: float, *, power: float = 1.0, min_lr_ratio: float = 0.0) -> float:
    """Fall as `(1 - progress) ** power` to `min_lr_ratio`."""
    left: float = (1.0 - min(progress, 1.0)) ** power
    return min_lr_ratio + (1.0 - min_lr_ratio) * left


def rex(progress: float, *, min_lr_ratio: float = 0.0) -> float:
    """Fall slowly at first and fast at the end.

    Source: https://arxiv.org/abs/2107.04197, with its rational form (1 - z) / (1 - z / 2).
    """
    z = min(progress, 1.0)
    return min_lr_ratio + (1.0 - min_lr_ratio) * (1.0 - z) / (1.0 - z / 2.0)


def one_cycle(
    progress: float, *, rise: float = 0.3, start_ratio: float = 0.04, min_lr_ratio: float = 4e-6
) -> float:
    """Rise from `start_ratio` over the first `rise` of the run, then fall to `min_lr_ratio`.

    Both ways along half a cosine. Source: https://arxiv.org/abs/1708.07120.
    """
    if progress < rise:
        return cosine(1.0 - progress / rise, min_lr_ratio=start_ratio)
    return cosine((progress - rise) / (1.0 - rise), min_lr_ratio=min_lr_ratio)


def warmup_stable_decay(
    progress: float, *, decay_ratio: float = 0.1, min_lr_ratio: float = 0.0
) -> float:
    """Stay at the peak, then fall along half a cosine in the last `decay_ratio` of the run."""
    if progress <= 1.0 - decay_ratio:
        return 1.0
    return cosine((progress - (1.0 - decay_ratio)) / decay_ratio, min_lr_ratio=min_lr_ratio)


SHAPES: Mapping[str, Shape] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_min_lr": cosine,
    "cosine_warmup_with_min_lr": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "rex": rex,
    "one_cycle": one_cycle,
    "warmup_stable_decay": warmup_stable_decay,
}
"""The schedules that depend on progress alone; `inverse_sqrt` depends on the step itself."""


def check_schedule(plan: SchedulePlan) -> None:
    """Check name and arguments of a schedule, before anything is loaded.

    Raises:
        ConfigError: an unknown or refused name, an argument the schedule does not take, or a floor
            for a schedule that has none.
    """
    known = known_schedules()
    if plan.name in REFUSED_SCHEDULES:
        raise _problem(
            "lr_scheduler", f"`{plan.name}` is not supported: {REFUSED_SCHEDULES[plan.name]}."
        )
    if plan.name not in known:
        hint = did_you_mean(plan.name, known) or f"known: {', '.join(sorted(known))}"
        raise _problem("lr_scheduler", f"unknown schedule `{plan.name}`; {hint}")
    if plan.min_ratio is not None and plan.name in SCHEDULES_WITHOUT_FLOOR:
        raise _problem("cosine_min_lr_ratio", f"the schedule `{plan.name}` has no floor")
    if plan.constant_ratio is not None and not plan.name.startswith("cosine"):
        raise _problem("cosine_constant_lr_ratio", f"does not act on the schedule `{plan.name}`")
    allowed = _arguments_of(plan.name)
    for name in plan.arguments:
        if name not in allowed:
            hint = did_you_mean(name, allowed) or f"it takes: {', '.join(allowed) or 'nothing'}"
            raise _problem(f"lr_scheduler_kwargs.{name}", f"`{plan.name}` has no `{name}`; {hint}")


def known_schedules() -> set[str]:
    """Return every name that `check_schedule` accepts."""
    return {*SHAPES, "inverse_sqrt"}


def learning_rate_share(plan: SchedulePlan, total_steps: int) -> Callable[[int], float]:
    """Return the share of the peak learning rate as a function of the step (see the module)."""
    check_schedule(plan)
    if plan.name == "inverse_sqrt":
        after = partial(_inverse_sqrt, warmup=plan.warmup_steps, **plan.arguments)
    else:
        after = partial(_shaped, plan=plan, total_steps=total_steps)
    share = partial(_with_warmup, plan=plan, after=after)
    if plan.restarts is None:
        return share
    return partial(_dented, share=share, plan=plan.restarts, total_steps=total_steps)


def _dented(
    step: int, *, share: Callable[[int], float], plan: RestartPlan, total_steps: int
) -> float:
    """Return the share, going down before each restart and up after it, in straight lines."""
    place = step % plan.every_steps
    next_restart = step - place + plan.every_steps
    factor = 1.0
    if step >= plan.every_steps and place < plan.warmup_steps:
        factor = place / plan.warmup_steps
    if next_restart < total_steps and next_restart - step < plan.anneal_steps:
        factor *= (next_restart - step) / plan.anneal_steps
    return factor * share(step)


def _with_warmup(step: int, *, plan: SchedulePlan, after: Callable[[int], float]) -> float:
    if step < plan.warmup_steps:
        share = step / plan.warmup_steps
        return share * share if plan.quadratic_warmup else share
    return after(step)


def _shaped(step: int, *, plan: SchedulePlan, total_steps: int) -> float:
    # With `cosine_constant_lr_ratio` the floor is reached early and held from there on.
    end = total_steps if plan.constant_ratio is None else round(total_steps * plan.constant_ratio)
    arguments = dict(plan.arguments)
    if plan.min_ratio is not None:
        arguments["min_lr_ratio"] = plan.min_ratio
    progress = min(1.0, (step - plan.warmup_steps) / max(1, end - plan.warmup_steps))
    return SHAPES[plan.name](progress, **arguments)


def _inverse_sqrt(step: int, *, warmup: int, timescale: int | None = None) -> float:
    scale = timescale or warmup or 10_000
    return 1.0 / math.sqrt((step + scale - warmup) / scale)


def _arguments_of(name: str) -> list[str]:
    if name == "inverse_sqrt":
        return ["timescale"]
    parameters = inspect.signature(SHAPES[name]).parameters
    return [parameter for parameter in parameters if parameter != "progress"]


def _problem(path: str, message: str) -> ConfigError:
    return ConfigError([Problem(path, message)])
