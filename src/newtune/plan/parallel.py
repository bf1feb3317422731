"""How several processes train one model: decided before weights load."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from newtune.config.parallel import IN_PARTS, FsdpSection
from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.context import require_shareable
from newtune.plan.ledger import Ledger
from newtune.plan.mesh import HYBRID, given_sizes, plan_mesh
from newtune.plan.parts import (
    AdapterPlan,
    FsdpPlan,
    MeshPlan,
    ModelFacts,
    ParallelPlan,
    QuantizationPlan,
)
from newtune.plan.processes import placement_of_one
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
SHARDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Those whose arithmetic is element by element, by torch's own operators."""
DONE_BY_FSDP2: Mapping[str, str] = {
    "limit_all_gathers": "FSDP2 limits them by itself",
    "use_orig_params": "FSDP2 always keeps the original parameters",
    "sync_module_states": "every process reads the same weights",
    "backward_prefetch": "FSDP2 prefetches by itself",
    "forward_prefetch": "FSDP2 prefetches by itself",
}
RESHARDS = {
    "FULL_SHARD": True,
    "SHARD_GRAD_OP": False,
    "1": True,
    "2": False,
    "HYBRID_SHARD": True,
    "HYBRID_SHARD_ZERO2": False,
    "4": True,
    "5": False,
}
OTHER_STRATEGIES = {"NO_SHARD": "shards nothing", "3": "shards nothing (NO_SHARD)"}
DRAWN_INITS = (True, False, "gaussian", "orthogonal")
"""First values of an adapter that do not depend on the weights below it."""
WHOLE = "a result is an ordinary model or adapter"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DTYPE_KEYS = ("param_dtype", "reduce_dtype", "output_dtype")


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
    keys = config.parallel
    options = {key: getattr(keys, key) for key in DDP_OPTIONS}
    if keys.deepspeed:  # planned by `plan/zero.py`, once the rest is known
        for key in ("ddp", *FOR_DDP_ONLY):
            if options[key] is not None:
                ledger.notice(f"`{key}` has no effect in this run: DeepSpeed exchanges gradients.")
        return ParallelPlan()
    section = keys.fsdp_config or FsdpSection()
    sizes = given_sizes(config)
    asks_to_shard = bool(section.given()) or (keys.dp_shard_size or 1) > 1
    fsdp = plan_fsdp(section, world, ledger) if asks_to_shard else None
    if fsdp is not None and section.cpu_ram_efficient_loading and world.size > 1:
        obstacle = _obstacle_to_loading_once(config, adapter, quantization)
        fsdp = replace(fsdp, loads_once=_loads_once(obstacle, ledger))
    if world.size == 1:
        _answer_alone(section, {**options, **sizes}, ledger)
        placed = placement_of_one(config)
        why = f"one process: {placed}" if placed else "one process"
        return ledger.decide("training.parallel", ParallelPlan(), why)
    splits = (keys.tensor_parallel_size or 1) > 1
    if keys.ddp is False and fsdp is None and not splits:
        message = f"is false, but {world.size} processes were started: they could not share a model"
        raise ConfigError([Problem("ddp", message, "Leave it out, or start one process.")])
    hybrid = fsdp is not None and _strategy(section) in HYBRID
    mesh = plan_mesh(config, world, ledger, sharded=fsdp is not None, hybrid=hybrid)
    if fsdp is not None or splits:
        _require_shardable(config, fsdp, quantization)
        _answer_ddp_options(options, ledger)
    if mesh.context > 1:
        assert facts is not None
        require_shareable(config, mesh.context, facts=facts, attention=attention)
    styles: Mapping[str, str] = {}
    if splits:
        _require_one_copy(mesh, sharded=fsdp is not None)
        assert facts is not None
        styles = plan_tensor(
            config,
            mesh.tensor,
            facts=facts,
            adapter=adapter,
            quantization=quantization,
            sharded=fsdp is not None,
        )
    plan = ParallelPlan(
        engine="fsdp2" if fsdp is not None else "tensor" if splits else "ddp",
        mesh=mesh,
        fsdp=fsdp,
        tensor_styles=styles,
        backend=keys.ddp_backend,
        timeout_seconds=keys.ddp_timeout or ParallelPlan.timeout_seconds,
        hang_timeout_seconds=hang_timeout_of(config),
        bucket_cap_mb=keys.ddp_bucket_cap_mb,
        broadcast_buffers=keys.ddp_broadcast_buffers,
        find_unused_parameters=bool(keys.ddp_find_unused_parameters),
    )
    return ledger.decide("training.parallel", plan, _why(plan, world))


def _loads_once(obstacle: str | None, ledger: Ledger) -> bool:
    key = "fsdp_config.cpu_ram_efficient_loading"
    if obstacle is not None:
        ledger.notice(f"`{key}` has no effect in this run: {obstacle}. Every process reads it all.")
    return obstacle is None


def _obstacle_to_loading_once(
    config: RunConfig, adapter: AdapterPlan | None, quantization: QuantizationPlan | None
) -> str | None:
    """Return why every process needs the whole weights while the model is made, if it does."""
    if quantization is not None:
        return "a quantised base's statistics are not handed out"
    if (config.parallel.tensor_parallel_size or 1) > 1:
        return "layers that are split are read by every process"
    if adapter is not None and adapter.continue_from is not None:
        return "the adapter to go on from is laid over the weights"
    if adapter is not None and adapter.init not in DRAWN_INITS:
        return f"the adapter starts from the weights (`peft_init_lora_weights: {adapter.init}`)"
    return None


def hang_timeout_of(config: RunConfig) -> int:
    """Return within how many seconds processes end when one of them dies or hangs; 0 = never."""
    given = config.parallel.hang_timeout_seconds
    return ParallelPlan.hang_timeout_seconds if given is None else given


def _answer_alone(section: FsdpSection, given: Mapping[str, Any], ledger: Ledger) -> None:
    for key, value in given.items():
        if value is not None:
            ledger.notice(f"`{key}` has no effect in this run: it has one process.")
    if section.given():
        ledger.notice("`fsdp_config` has no effect in this run: one process shares nothing.")


def _answer_ddp_options(options: Mapping[str, Any], ledger: Ledger) -> None:
    for key in FOR_DDP_ONLY:
        if options[key] is not None:
            ledger.notice(f"`{key}` has no effect in this run: the model is sharded.")


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


def _require_one_copy(mesh: MeshPlan, *, sharded: bool) -> None:
    if mesh.replicas > 1 and not sharded:
        message = f"{mesh.replicas} copies of a model whose layers are split need sharding, too"
        hint = "Use `dp_shard_size` instead, or besides."
        raise ConfigError([Problem("dp_replicate_size", message, hint)])


def plan_fsdp(section: FsdpSection, world: World, ledger: Ledger) -> FsdpPlan:
    """Return how the model is sharded.

    Raises:
        ConfigError: an unknown strategy or dtype.
    """
    for key, instead in DONE_BY_FSDP2.items():
        if getattr(section, key) is not None:
            ledger.notice(f"`fsdp_config.{key}` has no effect in this run: {instead}.")
    if section.final_state_dict_type not in (None, "FULL_STATE_DICT"):
        ledger.notice(f"`fsdp_config.final_state_dict_type` runs as FULL_STATE_DICT: {WHOLE}.")
    wrap = {"SIZE_BASED_WRAP": "size", "NO_WRAP": "nothing"}.get(section.auto_wrap_policy or "")
    classes = section.transformer_layer_cls_to_wrap or ()
    pin = section.cpu_offload_pin_memory
    return FsdpPlan(
        reshard_after_forward=_reshards(section),
        offload=bool(section.offload_params),
        pin_memory=world.device != "cpu" and pin is not False,
        wrap=wrap or "layers",  # type: ignore[arg-type]  # the values above
        layer_classes=tuple(classes.split(",")) if isinstance(classes, str) else tuple(classes),
        least_parameters=section.min_num_params or 0,
        dtypes=dict(_dtypes(section.mixed_precision_policy)),
        writes_parts=section.state_dict_type in IN_PARTS,
    )


def _strategy(section: FsdpSection) -> str:
    """Return FSDP1's name of the sharding, also where Axolotl's old spelling has it."""
    strategy, reshards = section.sharding_strategy, section.reshard_after_forward
    if strategy is None and isinstance(reshards, str):
        strategy = None if reshards.upper() in ("TRUE", "FALSE") else reshards
    return str(strategy if strategy is not None else "").upper()


def _reshards(section: FsdpSection) -> bool:
    name, said = _strategy(section), str(section.reshard_after_forward).upper()
    if name in OTHER_STRATEGIES:
        hint = "Leave `fsdp_config` out for data parallelism, or use FULL_SHARD or SHARD_GRAD_OP."
        problem = Problem(
            "fsdp_config.sharding_strategy", f"`{name}` {OTHER_STRATEGIES[name]}", hint
        )
        raise ConfigError([problem])
    if name and name not in RESHARDS:
        known = ", ".join(key for key in RESHARDS if not key.isdigit())
        message = f"`{name}` is no sharding strategy; known: {known}"
        raise ConfigError([Problem("fsdp_config.sharding_strategy", message)])
    return {"TRUE": True, "FALSE": False}.get(said, RESHARDS.get(name, True))


def _dtypes(policy: str | Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield `param_dtype: bfloat16`, ...; a single word is the dtype of computation."""
    key = "fsdp_config.mixed_precision_policy"
    given = {"param_dtype": policy} if isinstance(policy, str) else policy or {}
    for name, value in given.items():
        dtype = DTYPES.get(str(value), str(value).removeprefix("torch."))
        if name not in DTYPE_KEYS or dtype not in DTYPES.values():
            message = f"got `{name}: {value}`; it is {', '.join(DTYPE_KEYS)} → bf16, fp16 or fp32"
            raise ConfigError(
                [Problem(key, message, "`bf16` alone sets the dtype of computation.")]
            )
        yield name, dtype


def _require_shardable(
    config: RunConfig, fsdp: FsdpPlan | None, quantization: QuantizationPlan | None
) -> None:
    problems = [] if fsdp is None else list(_of_quantization(fsdp, quantization))
    if config.training.optimizer not in SHARDED_OPTIMIZERS:
        message = f"`{config.training.optimizer}` is not known to work on sharded parameters"
        hint = f"With sharding: {', '.join(SHARDED_OPTIMIZERS)}."
        problems.append(Problem("optimizer", message, hint))
    if config.compute.fp16:
        hint = "Use `bf16: auto`."
        problems.append(Problem("fp16", "its gradient scaler is not available with sharding", hint))
    if problems:
        raise ConfigError(problems)


def _of_quantization(fsdp: FsdpPlan, quantization: QuantizationPlan | None) -> Iterator[Problem]:
    if quantization is None:
        return
    if quantization.method != "bitsandbytes":
        message = f"cannot shard the packed layers of a base by {quantization.method}"
        yield Problem("fsdp_config", message, "Leave `fsdp_config` out: each process holds it all.")
    elif quantization.bits != 4:
        message = "cannot shard a base in 8 bit, whose layers change their weights as they compute"
        hint = "Use `load_in_4bit: true`, or leave `fsdp_config` out: DDP runs it."
        yield Problem("fsdp_config", message, hint)
    computed = fsdp.dtypes.get("param_dtype")
    stored = quantization.options.get("bnb_4bit_quant_storage", "uint8")
    if computed is not None and stored in DTYPES.values() and stored != computed:
        message = f"is {stored}: numbers that hold packed bits would be rounded to {computed}"
        hint = f"Leave it out, or give `{computed}`, as `mixed_precision_policy` has it."
        yield Problem("bnb_config_kwargs.bnb_4bit_quant_storage", message, hint)
