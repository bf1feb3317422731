"""FSDP2: how parameters are sharded, and what cannot be."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from newtune.config.parallel import IN_PARTS, FsdpSection
from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.ledger import Ledger
from newtune.plan.mesh import HYBRID
from newtune.plan.parts import AdapterPlan, QuantizationPlan
from newtune.plan.sharing import ELEMENT_BY_ELEMENT, FsdpPlan

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


def plan_fsdp(
    config: RunConfig,
    world: World,
    ledger: Ledger,
    *,
    adapter: AdapterPlan | None = None,
    quantization: QuantizationPlan | None = None,
) -> FsdpPlan | None:
    """Return how the model is sharded; None = nothing asks for it.

    Raises:
        ConfigError: an unknown strategy or dtype.
    """
    section = section_of(config)
    if not section.given() and (config.parallel.dp_shard_size or 1) == 1:
        return None
    plan = _plan(section, world, ledger)
    if not section.cpu_ram_efficient_loading or world.size == 1:
        return plan
    obstacle = _obstacle_to_loading_once(config, adapter, quantization)
    return replace(plan, loads_once=_loads_once(obstacle, ledger))


def section_of(config: RunConfig) -> FsdpSection:
    """Return `fsdp_config`, empty where it is not given."""
    return config.parallel.fsdp_config or FsdpSection()


def is_hybrid(section: FsdpSection) -> bool:
    """Tell whether the strategy asks for a copy of the model on each machine."""
    return _strategy(section) in HYBRID


def require_shardable(
    config: RunConfig, fsdp: FsdpPlan | None, quantization: QuantizationPlan | None
) -> None:
    """Check that the parameters can be taken apart, by FSDP2 or layer by layer (`fsdp` None).

    Raises:
        ConfigError: what stands against it.
    """
    problems = [] if fsdp is None else list(_of_quantization(fsdp, quantization))
    if config.training.optimizer not in ELEMENT_BY_ELEMENT:
        message = f"`{config.training.optimizer}` is not known to work on sharded parameters"
        hint = f"With sharding: {', '.join(ELEMENT_BY_ELEMENT)}."
        problems.append(Problem("optimizer", message, hint))
    if config.compute.fp16:
        hint = "Use `bf16: auto`."
        problems.append(Problem("fp16", "its gradient scaler is not available with sharding", hint))
    if problems:
        raise ConfigError(problems)


def _plan(section: FsdpSection, world: World, ledger: Ledger) -> FsdpPlan:
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
