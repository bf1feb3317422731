"""How several processes train one model: decided before weights load."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.context import require_shareable
from newtune.plan.facts import ModelFacts
from newtune.plan.fsdp import is_hybrid, plan_fsdp, require_shardable, section_of
from newtune.plan.ledger import Ledger
from newtune.plan.mesh import given_sizes, plan_mesh
from newtune.plan.parts import AdapterPlan, QuantizationPlan
from newtune.plan.processes import placement_of_one
from newtune.plan.sharing import MeshPlan, ParallelPlan
from newtune.plan.tensor import plan_tensor

DDP_OPTIONS = (
    "ddp",
    "ddp_backend",
    "ddp_timeout",
    "hang_timeout_seconds",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "ddp_find_unused_parameters",
)
FOR_DDP_ONLY = ("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters")


def plan_parallel(
    config: RunConfig,
    world: World,
    ledger: Ledger,
    *,
    facts: ModelFacts | None = None,
    adapter: AdapterPlan | None = None,
    quantization: QuantizationPlan | None = None,
    attention: str = "sdpa",
) -> ParallelPlan:
    """Return how the processes work together; alone, given options are answered with a notice.

    `facts` are needed where layers are split or sequences shared.

    Raises:
        ConfigError: `ddp: false` with several processes, each of which would train alone; what
            cannot be sharded.
    """
    options = {key: getattr(config.parallel, key) for key in DDP_OPTIONS}
    if config.parallel.deepspeed:  # planned by `plan/zero.py`, once the rest is known
        _answer("DeepSpeed exchanges gradients", ("ddp", *FOR_DDP_ONLY), options, ledger)
        return ParallelPlan()
    fsdp = plan_fsdp(config, world, ledger, adapter=adapter, quantization=quantization)
    if world.size == 1:
        _answer_alone(config, options, ledger)
        placed = placement_of_one(config)
        why = f"one process: {placed}" if placed else "one process"
        return ledger.decide("training.parallel", ParallelPlan(), why)
    mesh = _plan_mesh(config, world, ledger, sharded=fsdp is not None)
    splits = mesh.tensor > 1
    if fsdp is not None or splits:
        require_shardable(config, fsdp, quantization)
        _answer("the model is sharded", FOR_DDP_ONLY, options, ledger)
    if mesh.context > 1:
        assert facts is not None
        require_shareable(config, mesh.context, facts=facts, attention=attention)
    styles: Mapping[str, str] = {}
    if splits:
        assert facts is not None
        styles = plan_tensor(
            config, mesh, facts=facts, adapter=adapter, quantization=quantization, fsdp=fsdp
        )
    plan = replace(
        _options_of_ddp(config),
        engine="fsdp2" if fsdp is not None else "tensor" if splits else "ddp",
        mesh=mesh,
        fsdp=fsdp,
        tensor_styles=styles,
    )
    return ledger.decide("training.parallel", plan, _why(plan, world))


def hang_timeout_of(config: RunConfig) -> int:
    """Return within how many seconds processes end when one of them dies or hangs; 0 = never."""
    given = config.parallel.hang_timeout_seconds
    return ParallelPlan.hang_timeout_seconds if given is None else given


def _plan_mesh(config: RunConfig, world: World, ledger: Ledger, *, sharded: bool) -> MeshPlan:
    splits = (config.parallel.tensor_parallel_size or 1) > 1
    if config.parallel.ddp is False and not (sharded or splits):
        message = f"is false, but {world.size} processes were started: they could not share a model"
        raise ConfigError([Problem("ddp", message, "Leave it out, or start one process.")])
    hybrid = sharded and is_hybrid(section_of(config))
    return plan_mesh(config, world, ledger, sharded=sharded, hybrid=hybrid)


def _options_of_ddp(config: RunConfig) -> ParallelPlan:
    keys = config.parallel
    return ParallelPlan(
        backend=keys.ddp_backend,
        timeout_seconds=keys.ddp_timeout or ParallelPlan.timeout_seconds,
        hang_timeout_seconds=hang_timeout_of(config),
        bucket_cap_mb=keys.ddp_bucket_cap_mb,
        broadcast_buffers=keys.ddp_broadcast_buffers,
        find_unused_parameters=bool(keys.ddp_find_unused_parameters),
    )


def _answer_alone(config: RunConfig, options: Mapping[str, Any], ledger: Ledger) -> None:
    given = {**options, **given_sizes(config)}
    _answer("it has one process", given, given, ledger)
    if section_of(config).given():
        ledger.notice("`fsdp_config` has no effect in this run: one process shares nothing.")


def _answer(why: str, keys: Iterable[str], given: Mapping[str, Any], ledger: Ledger) -> None:
    """Say of options that were given why they change nothing."""
    for key in keys:
        if given[key] is not None:
            ledger.notice(f"`{key}` has no effect in this run: {why}.")


def _why(plan: ParallelPlan, world: World) -> str:
    copies, shards = plan.mesh.replicas, plan.mesh.shards
    if plan.mesh.context > 1:
        rows = f"{plan.mesh.context} processes share every sequence"
        shards *= plan.mesh.context
        return rows if plan.fsdp is None else f"{rows}; parameters are sharded {shards} ways"
    if plan.mesh.tensor > 1:
        layers = f"{plan.mesh.tensor} processes share every layer and its rows"
        return layers if plan.fsdp is None else f"{layers}; parameters are sharded {shards} ways"
    if plan.fsdp is None:
        return f"{world.size} processes hold the whole model each and average its gradients"
    if copies == 1:
        return f"FSDP2: each of {shards} processes holds a part of every parameter"
    return f"HSDP: {copies} copies of the model, each shared by {shards} processes"
