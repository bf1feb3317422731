"""DeepSpeed's configuration, filled from the plan: each `auto`, and nothing that contradicts it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from newtune.config.deepspeed_file import PASSED_ON, read_deepspeed
from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem, SetupError
from newtune.plan.facts import ModelFacts
from newtune.plan.ledger import Ledger
from newtune.plan.parts import (
    OptimizerPlan,
    PrecisionPlan,
    QuantizationPlan,
    SchedulePlan,
    StepPlan,
)
from newtune.plan.sharing import ELEMENT_BY_ELEMENT, ParallelPlan, ZeroPlan

ADAMS = ("adamw_torch", "adamw_torch_fused")
SCHEDULES: Mapping[str, str] = {
    "WarmupDecayLR": "linear",
    "WarmupLR": "constant_with_warmup",
    "WarmupCosineLR": "cosine",
}
"""DeepSpeed's `scheduler.type` → newtune's `lr_scheduler`."""
ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "zero_optimization.stage": ((1, 2, 3), "ZeRO shares something from stage 1 on"),
    "zero_optimization.compute_grad_norm": ((True,), "the gradient's norm is reported"),
    "zero_optimization.offload_optimizer.device": (("none", "cpu"), "newtune offloads to the CPU"),
    "zero_optimization.offload_optimizer.ratio": ((1, 1.0), "all of it is offloaded, or nothing"),
    "zero_optimization.offload_optimizer.super_offload": ((False,), "it was never run"),
    "zero_optimization.offload_param.device": (("none", "cpu"), "newtune offloads to the CPU"),
    "zero_optimization.zenflow": ((None,), "it was never run"),
    "zero_optimization.cpu_offload": ((None, False), "write `offload_optimizer: {device: cpu}`"),
    "zero_optimization.cpu_offload_param": ((None, False), "write `offload_param: {device: cpu}`"),
    "bf16.bf16_master_weights_and_grads": ((False,), "the optimizer's weights are float32"),
    "bf16.bf16_optimizer_states": ((False,), "the optimizer's state is float32"),
    "prescale_gradients": ((False,), "newtune divides once, by the step's trained tokens"),
    "torch_autocast.enabled": ((False,), "see `bf16`"),
}
"""Key → the values that newtune was run with, and why not the others."""


@dataclass(frozen=True)
class Known:
    """What the rest of the plan says, which DeepSpeed's configuration must agree with."""

    steps: StepPlan
    optimizer: OptimizerPlan
    schedule: SchedulePlan
    precision: PrecisionPlan
    facts: ModelFacts
    quantization: QuantizationPlan | None = None


def read_zero(config: RunConfig) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration as given, or None without one.

    Raises:
        ConfigError: the file is not there, or has keys that nobody knows.
        SetupError: DeepSpeed is not installed.
    """
    if not config.parallel.deepspeed:
        return None
    folder = config.source.parent if config.source is not None else Path()
    values = read_deepspeed(config.parallel.deepspeed, folder)
    if find_spec("deepspeed") is None:
        raise SetupError(
            "`deepspeed` needs the package deepspeed: `pip install 'newtune[deepspeed]'`; on a "
            "machine without a GPU `DS_BUILD_OPS=0 DS_ACCELERATOR=cpu pip install "
            "'newtune[deepspeed]'`."
        )
    return values


def asks_for_bf16(values: Mapping[str, Any] | None) -> bool:
    """Tell whether the file itself switches bfloat16 on."""
    return values is not None and _at(values, "bf16.enabled") is True


def zero_precision(precision: PrecisionPlan) -> tuple[PrecisionPlan, str] | None:
    """Return the number formats under DeepSpeed where they differ: float32 is the optimizer's."""
    if precision.autocast != "bfloat16":
        return None
    why = "deepspeed: weights in bfloat16, and in float32 beside the optimizer's state"
    return replace(precision, trained_weights="bfloat16", autocast=None), why


def plan_zero(
    config: RunConfig, values: Mapping[str, Any], known: Known, world: World, ledger: Ledger
) -> ParallelPlan:
    """Return how DeepSpeed shares the model out; one process keeps everything, or offloads it.

    Raises:
        ConfigError: values that contradict the rest of the plan, or that newtune never ran.
    """
    given = {key: _copied(value) for key, value in values.items() if key in PASSED_ON}
    problems = [*_refused(config, given, known), *_fill(given, known)]
    if problems:
        raise ConfigError(problems)
    for name in ("optimizer", "scheduler"):  # newtune makes both; they were compared
        given.pop(name, None)
    zero = given["zero_optimization"]
    _pin_nothing_on_a_cpu(zero, world)
    offloads = {
        kind: zero.get(f"offload_{kind}", {}).get("device", "none") == "cpu"
        for kind in ("optimizer", "param")
    }
    forced = given.get("zero_force_ds_cpu_optimizer", world.device != "cpu")
    cpu_adam = offloads["optimizer"] and forced and known.optimizer.name in ADAMS
    given["zero_force_ds_cpu_optimizer"] = cpu_adam
    given["zero_allow_untested_optimizer"] = True
    plan = ParallelPlan(
        engine="zero",
        zero=ZeroPlan(
            stage=zero["stage"],
            config=given,
            dtype="bfloat16" if given["bf16"]["enabled"] else None,
            offloads_parameters=offloads["param"],
            cpu_adam=cpu_adam,
        ),
        backend=config.parallel.ddp_backend,
        timeout_seconds=config.parallel.ddp_timeout or ParallelPlan.timeout_seconds,
    )
    return ledger.decide("training.parallel", plan, _why(zero["stage"], offloads, world))


def _why(stage: int, offloads: Mapping[str, bool], world: World) -> str:
    shared = ("optimizer state", "and gradients", "and parameters")[:stage]
    on_cpu = [kind for kind, is_so in offloads.items() if is_so]
    where = f", {' and '.join(on_cpu)} on the CPU" if on_cpu else ""
    if world.size == 1:
        return f"deepspeed: ZeRO-{stage} on one process{where}"
    return f"deepspeed: ZeRO-{stage}: {world.size} processes share {' '.join(shared)}{where}"


def _refused(config: RunConfig, given: Mapping[str, Any], known: Known) -> Iterator[Problem]:
    """Yield a problem for what newtune does not do with DeepSpeed."""
    if known.optimizer.name not in ELEMENT_BY_ELEMENT:
        message = f"`{known.optimizer.name}` is not known to work with DeepSpeed"
        yield Problem("optimizer", message, f"With `deepspeed`: {', '.join(ELEMENT_BY_ELEMENT)}.")
    if known.precision.autocast == "float16" or known.precision.trained_weights == "float16":
        yield Problem("fp16", "is not available with `deepspeed`", "Use `bf16: auto`.")
    if config.adapter.relora:
        yield Problem("relora", "is not available with `deepspeed`", "DDP runs it.")
    base = known.quantization
    if base and base.method != "bitsandbytes":
        message = f"the packed layers of a base by {base.method} are not known to work with it"
        yield Problem("deepspeed", message, "Leave it out: each process holds all of the base.")
    elif base and base.bits != 4 and _at(given, "zero_optimization.stage") == 3:
        message = "ZeRO-3 cannot share a base in 8 bit, whose layers change their weights"
        yield Problem("deepspeed", message, "Use `load_in_4bit: true`, or ZeRO-1 or 2.")
    for key, (allowed, why) in ONLY.items():
        value = _at(given, key)
        if value is not None and value not in allowed:
            message = f"is {value!r}, but {why}"
            yield Problem(f"deepspeed.{key}", message, f"Allowed: {', '.join(map(str, allowed))}.")
    if _at(given, "zero_optimization.stage") is None:
        yield Problem("deepspeed.zero_optimization.stage", "is missing", "Give 1, 2 or 3.")
    elif _at(given, "zero_optimization.offload_param") and given["zero_optimization"]["stage"] != 3:
        yield Problem("deepspeed.zero_optimization.offload_param", "needs `stage: 3`")


def _fill(given: dict[str, Any], known: Known) -> Iterator[Problem]:
    """Put values in place of `auto`, and yield a problem for each that says otherwise."""
    hidden = known.facts.hidden_size
    bf16 = "bfloat16" in (known.precision.autocast, known.precision.trained_weights)
    decided = {
        "train_micro_batch_size_per_gpu": known.steps.rows_per_device,
        "gradient_accumulation_steps": known.steps.accumulation,
        "train_batch_size": known.steps.rows_per_step,
        "gradient_clipping": known.optimizer.max_grad_norm,
        "bf16.enabled": bf16,
        "fp16.enabled": False,
    }
    for path, value in decided.items():
        yield from _must_be(given, path, value, insert=True)
    yield from _optimizer(given, known)
    yield from _scheduler(given, known)
    sizes = {
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": hidden * hidden * 9 // 10,
        "stage3_param_persistence_threshold": 10 * hidden,
    }
    zero = given.get("zero_optimization", {})
    zero |= {key: value for key, value in sizes.items() if zero.get(key) == "auto"}
    for path in _autos(given):
        yield Problem(f"deepspeed.{path}", "`auto` cannot be filled here", "Give a value.")


def _optimizer(given: dict[str, Any], known: Known) -> Iterator[Problem]:
    section = given.get("optimizer")
    if section is None:
        return
    kind, optimizer = str(section.get("type", "")), known.optimizer
    if kind.lower() not in ("adam", "adamw") or optimizer.name not in ADAMS:
        message = f"is {kind}, but `optimizer` is {optimizer.name}"
        yield Problem("deepspeed.optimizer.type", message, "Say it once, in the YAML.")
        return
    decided = {
        "lr": optimizer.learning_rate,
        "betas": [optimizer.beta1, optimizer.beta2],
        "eps": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay,
        "adam_w_mode": True,
        "torch_adam": True,
    }
    yield from _params(given, "optimizer", decided)


def _scheduler(given: dict[str, Any], known: Known) -> Iterator[Problem]:
    section = given.get("scheduler")
    if section is None:
        return
    kind, schedule = str(section.get("type", "")), known.schedule
    if SCHEDULES.get(kind) != schedule.name:
        message = f"is {kind}, but `lr_scheduler` is {schedule.name}"
        yield Problem("deepspeed.scheduler.type", message, "Say it once, in the YAML.")
        return
    decided = {
        "warmup_min_lr": 0,
        "warmup_max_lr": known.optimizer.learning_rate,
        "warmup_num_steps": schedule.warmup_steps,
        "total_num_steps": known.steps.total_steps,
        "warmup_type": "linear",
    }
    yield from _params(given, "scheduler", decided)


def _params(given: dict[str, Any], name: str, decided: Mapping[str, Any]) -> Iterator[Problem]:
    for key in given[name].get("params", {}):
        path = f"{name}.params.{key}"
        if key in decided:
            yield from _must_be(given, path, decided[key])
        else:
            known = ", ".join(decided)
            yield Problem(f"deepspeed.{path}", "is not passed on", f"Known here: {known}.")


def _must_be(
    given: dict[str, Any], path: str, value: Any, *, insert: bool = False
) -> Iterator[Problem]:
    *sections, key = path.split(".")
    place = given
    for section in sections:
        place = place.setdefault(section, {})
    said = place.get(key, "auto" if insert else None)
    if said == "auto":
        place[key] = value
    elif said != value:
        message = f"is {said}, but the run's is {value}"
        yield Problem(f"deepspeed.{path}", message, "Write `auto`, or the same in the YAML.")


def _autos(value: Any, path: str = "") -> Iterator[str]:
    if value == "auto":
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _autos(inner, f"{path}.{key}" if path else str(key))


def _pin_nothing_on_a_cpu(zero: dict[str, Any], world: World) -> None:
    """Switch page-locked memory off where no GPU would read it."""
    for name in ("offload_optimizer", "offload_param"):
        if world.device == "cpu" and name in zero:
            zero[name]["pin_memory"] = False


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _copied(value: Any) -> Any:
    return {key: _copied(v) for key, v in value.items()} if isinstance(value, Mapping) else value
