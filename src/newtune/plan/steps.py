"""How many steps, of how many sequences, and after which of them something happens: arithmetic."""

import math
from collections.abc import Callable
from dataclasses import dataclass

MOST_EPOCHS = 100_000
"""A `max_steps` that needs more epochs than this is a mistake."""


@dataclass(frozen=True)
class BatchSize:
    """Sequences per device and forward, forwards per step, and why."""

    rows_per_device: int
    accumulation: int
    reason: str


def resolve_batch_size(
    micro: int | None, accumulation: int | None, total: int | None, *, world_size: int
) -> BatchSize:
    """Return the batch arithmetic from any two of the three keys (one suffices besides defaults).

    `micro` = rows per device per forward, `accumulation` = forwards per step, `total` = rows per
    step over all processes.

    Raises:
        ValueError: they do not divide, or all three contradict each other; the text says how.
    """
    if total is None:
        rows, forwards = micro or 1, accumulation or 1
        reason = f"micro_batch_size {rows} × accumulation {forwards}"
        if world_size > 1:
            reason += f" on each of {world_size} processes: the global batch grows with them"
        return BatchSize(rows, forwards, reason)
    if micro is None:
        micro = _divide(total, (accumulation or 1) * world_size, "gradient_accumulation_steps")
        accumulation = accumulation or 1
    elif accumulation is None:
        accumulation = _divide(total, micro * world_size, "micro_batch_size")
    if micro * accumulation * world_size != total:
        raise ValueError(
            f"micro_batch_size {micro} × gradient_accumulation_steps {accumulation} × "
            f"{world_size} process(es) = {micro * accumulation * world_size}, not batch_size "
            f"{total}; leave one of the three out."
        )
    return BatchSize(
        micro, accumulation, f"batch_size {total} over {world_size} process(es) of {micro} row(s)"
    )


def _divide(total: int, by: int, name: str) -> int:
    if total % by:
        raise ValueError(
            f"batch_size {total} is not a multiple of {by} ({name} × processes); "
            f"nearest: {max(by, total // by * by)} or {(total // by + 1) * by}."
        )
    return total // by


def steps_of_epochs(
    packs_in_epoch: Callable[[int], int],
    *,
    rows_per_step: int,
    epochs: float,
    max_steps: int | None,
) -> tuple[int, ...]:
    """Return the steps of each epoch the run enters, the last cut off where the run ends.

    A fractional last epoch gives ⌈fraction × steps⌉; `max_steps` wins over `epochs`.
    """
    if max_steps is None:
        whole = int(epochs)
        steps = [_steps(packs_in_epoch(epoch), rows_per_step) for epoch in range(whole)]
        if (part := epochs - whole) > 1e-9:
            steps.append(math.ceil(part * _steps(packs_in_epoch(whole), rows_per_step) - 1e-9))
        return tuple(steps)
    steps = []
    left = max_steps
    while left > 0 and len(steps) < MOST_EPOCHS:
        of_epoch = min(left, _steps(packs_in_epoch(len(steps)), rows_per_step))
        steps.append(of_epoch)
        left -= of_epoch
    return tuple(steps)


def _steps(packs: int, rows_per_step: int) -> int:
    return math.ceil(packs / rows_per_step)


def epoch_ends(steps_in_epoch: tuple[int, ...]) -> frozenset[int]:
    """Return the last step of each epoch, counted from 1 over the whole run."""
    ends, end = [], 0
    for steps in steps_in_epoch:
        end += steps
        ends.append(end)
    return frozenset(ends)


def cadence(
    strategy: str | None,
    every: float | None,
    per_epoch: int | None,
    steps_in_epoch: tuple[int, ...],
) -> tuple[frozenset[int], str]:
    """Return the steps after which to act, and why.

    `every` is a number of steps, or below 1 a share of the run; `per_epoch` a number of times per
    epoch, the last at its end. With none of them given, once at the end of each epoch.
    """
    if strategy == "no":
        return frozenset(), "switched off by the strategy"
    if every is not None and every > 0:
        return _every(every, sum(steps_in_epoch))
    if per_epoch:
        return _per_epoch(per_epoch, steps_in_epoch), f"{per_epoch} time(s) per epoch"
    return epoch_ends(steps_in_epoch), "at the end of each epoch"


def _every(every: float, total: int) -> tuple[frozenset[int], str]:
    if every < 1:
        interval = max(1, math.ceil(every * total))
        reason = f"every {interval} steps: {every:g} of {total}"
    else:
        interval = int(every)
        reason = f"every {interval} steps"
    return frozenset(range(interval, total + 1, interval)), reason


def _per_epoch(times: int, steps_in_epoch: tuple[int, ...]) -> frozenset[int]:
    marks, start = set(), 0
    for steps in steps_in_epoch:
        marks |= {start + math.ceil(steps * part / times) for part in range(1, times + 1)}
        start += steps
    return frozenset(mark for mark in marks if mark > 0)


def resolve_warmup(steps: float | None, ratio: float | None, total_steps: int) -> tuple[int, str]:
    """Return the number of warm-up steps, and why."""
    if steps is not None:
        return min(int(steps), total_steps), "warmup_steps"
    if ratio is not None:
        return math.ceil(ratio * total_steps), f"warmup_ratio {ratio:g} of {total_steps} steps"
    default = min(int(0.03 * total_steps), 100)
    return default, f"neither warm-up key is given: 3 % of {total_steps} steps, at most 100"
