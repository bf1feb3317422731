"""Rules about the model, its adapter, its arithmetic, and where it lies."""

import re
from collections.abc import Iterator
from typing import Any

from newtune.config.compute import ATTENTION
from newtune.config.parallel import IN_PARTS
from newtune.config.quantization import BNB_OPTIONS
from newtune.config.rules.rule import about
from newtune.config.run import RunConfig
from newtune.config.unfrozen import read_pattern
from newtune.errors import Problem
from newtune.lookup import did_you_mean, sentence

# Model and tokenizer


@about("base_model")
def base_model_is_needed(config: RunConfig) -> Iterator[Problem]:
    """`base_model` is required."""
    if not config.model.base_model:
        yield Problem("base_model", "is required", "A hub id, a folder, or a `.gguf` file.")


@about(
    "is_llama_derived_model",
    "is_mistral_derived_model",
    "is_falcon_derived_model",
    "is_qwen_derived_model",
)
def one_family(config: RunConfig) -> Iterator[Problem]:
    """A model belongs to one family."""
    names = ("llama", "mistral", "falcon", "qwen")
    keys = [f"is_{name}_derived_model" for name in names]
    given = [key for key in keys if getattr(config.model, key)]
    if len(given) > 1:
        yield Problem(given[1], f"contradicts `{given[0]}`: a model belongs to one family")


@about("unfrozen_parameters", "adapter")
def unfrozen_without_adapter(config: RunConfig) -> Iterator[Problem]:
    """`unfrozen_parameters` is for full fine-tuning; an adapter freezes the whole base."""
    if config.model.unfrozen_parameters and config.adapter.adapter:
        hint = "With an adapter, `lora_modules_to_save` names what is trained in full."
        yield Problem("unfrozen_parameters", f"excludes `adapter: {config.adapter.adapter}`", hint)


@about("unfrozen_parameters")
def ranges_of_rows_hold_rows(config: RunConfig) -> Iterator[Problem]:
    """A range of rows in `unfrozen_parameters` (`[:32000]`) holds at least one row."""
    for index, text in enumerate(config.model.unfrozen_parameters or ()):
        pattern = read_pattern(text)
        if pattern.stop is not None and pattern.stop <= pattern.start:
            message = f"`{text}` names no row: {pattern.stop} is not after {pattern.start}"
            hint = "Write `[first:last]`; the last row itself is left out."
            yield Problem(f"unfrozen_parameters.{index}", message, hint)


HOLDS_PARTS = ("deepspeed", "fsdp", "fsdp_config", "dp_shard_size", "tensor_parallel_size")


@about("unfrozen_parameters", "optimizer", *HOLDS_PARTS)
def rows_are_kept_where_they_are_whole(config: RunConfig) -> Iterator[Problem]:
    """Rows that stay frozen in `unfrozen_parameters` need a process that holds them as a whole."""
    texts = enumerate(config.model.unfrozen_parameters or ())
    ranges = [index for index, text in texts if read_pattern(text).is_range]
    given = [key for key in HOLDS_PARTS if getattr(config.parallel, key) not in (None, 1, (), {})]
    for index in ranges:
        path, hint = f"unfrozen_parameters.{index}", "Leave the range out, or the key."
        for key in given[:1]:
            message = f"names rows, which excludes `{key}`: it deals out the optimizer's weights, "
            yield Problem(
                path, f"{message}so that the other rows could not be kept as they are", hint
            )
        if config.training.optimizer.startswith("schedule_free"):
            message = f"names rows, which excludes `optimizer: {config.training.optimizer}`"
            yield Problem(path, f"{message}: it keeps a second set of weights, which decays", hint)


# Quantised bases and placement


@about("load_in_8bit", "load_in_4bit")
def one_width(config: RunConfig) -> Iterator[Problem]:
    """`load_in_8bit` and `load_in_4bit` exclude each other."""
    if config.quantization.load_in_8bit and config.quantization.load_in_4bit:
        yield Problem("load_in_4bit", "excludes `load_in_8bit`", "Keep one of them.")


@about("gptq", "load_in_8bit", "load_in_4bit")
def gptq_is_quantised_already(config: RunConfig) -> Iterator[Problem]:
    """A GPTQ checkpoint is quantised already: `gptq` excludes `load_in_8bit` and `load_in_4bit`."""
    for key in ("load_in_8bit", "load_in_4bit"):
        if config.quantization.gptq and getattr(config.quantization, key):
            yield Problem("gptq", f"excludes `{key}`: a GPTQ checkpoint is quantised already")


@about("adapter", "load_in_8bit", "load_in_4bit", "gptq")
def qlora_is_4_bit(config: RunConfig) -> Iterator[Problem]:
    """`adapter: qlora` means a 4-bit base: not `load_in_8bit`, `gptq` or `load_in_4bit: false`."""
    if config.adapter.adapter != "qlora":
        return
    base = config.quantization
    if base.load_in_8bit or base.gptq:
        other = "load_in_8bit" if base.load_in_8bit else "gptq"
        yield Problem("adapter", f"`qlora` excludes `{other}`", "`lora` goes with it.")
    if "load_in_4bit" in base.given() and not base.load_in_4bit:
        yield Problem("load_in_4bit", "`false` contradicts `adapter: qlora`", "Or use `lora`.")


@about("adapter", "load_in_8bit", "load_in_4bit", "gptq")
def quantised_base_needs_adapter(config: RunConfig) -> Iterator[Problem]:
    """A quantised base cannot be trained itself: it needs an adapter."""
    for key in ("load_in_8bit", "load_in_4bit", "gptq"):
        if getattr(config.quantization, key) and not config.adapter.adapter:
            hint = "Add `adapter: lora`, or leave the key out to train all weights."
            yield Problem(key, "needs an adapter: nothing else would be trainable", hint)


@about("bnb_config_kwargs")
def bitsandbytes_knows_its_options(config: RunConfig) -> Iterator[Problem]:
    """`bnb_config_kwargs` holds options that bitsandbytes has, with values that they may have."""
    for name, value in (config.quantization.bnb_config_kwargs or {}).items():
        path = f"bnb_config_kwargs.{name}"
        if name in ("load_in_4bit", "load_in_8bit"):
            yield Problem(path, "is a key of its own", f"Write `{name}` at the top level.")
        elif name not in BNB_OPTIONS:
            hint = did_you_mean(name, BNB_OPTIONS) or f"It has: {', '.join(BNB_OPTIONS)}."
            yield Problem(path, "is no option of bitsandbytes that newtune passes on", hint)
        elif not _fits(value, BNB_OPTIONS[name]):
            yield Problem(path, f"`{value}` is not {_wanted(BNB_OPTIONS[name])}")


def _fits(value: Any, wanted: tuple[Any, ...] | type) -> bool:
    if isinstance(wanted, tuple):
        return value in wanted
    return isinstance(value, (int, float) if wanted is float else wanted)


def _wanted(wanted: tuple[Any, ...] | type) -> str:
    if isinstance(wanted, tuple):
        return f"one of {', '.join(map(str, wanted))}"
    return {float: "a number", list: "a list of module names", bool: "true or false"}[wanted]


@about("max_memory", "gpu_memory_limit")
def one_memory_limit(config: RunConfig) -> Iterator[Problem]:
    """`max_memory` and `gpu_memory_limit` exclude each other."""
    if config.placement.max_memory and config.placement.gpu_memory_limit:
        yield Problem("gpu_memory_limit", "excludes `max_memory`", "Keep one of them.")


@about("device_map")
def known_strategy(config: RunConfig) -> Iterator[Problem]:
    """`device_map` is a mapping, or `auto`, `balanced`, `balanced_low_0` or `sequential`."""
    name, known = config.placement.device_map, ("auto", "balanced", "balanced_low_0", "sequential")
    if isinstance(name, str) and name not in known:
        hint = did_you_mean(name, known) or f"Known: {', '.join(known)}; or module → device."
        yield Problem("device_map", f"no strategy `{name}`", sentence(hint))


@about("max_memory", "gpu_memory_limit")
def sizes_are_sizes(config: RunConfig) -> Iterator[Problem]:
    """Memory sizes are numbers, or texts such as `20GiB` and `512MB`."""
    sizes: dict[str, Any] = {}
    sizes |= {
        f"max_memory.{key}": size for key, size in (config.placement.max_memory or {}).items()
    }
    sizes["gpu_memory_limit"] = config.placement.gpu_memory_limit or 0
    for path, size in sizes.items():
        if isinstance(size, str) and not re.fullmatch(r"[\d.]+ *([KMGT]i?B)?", size):
            yield Problem(path, f"`{size}` is no size", "Write `20GiB` or `512MB`.")


@about(
    "device_map",
    "max_memory",
    "gpu_memory_limit",
    "lora_on_cpu",
    "fsdp",
    "fsdp_config",
    "deepspeed",
)
def placement_is_for_one_process(config: RunConfig) -> Iterator[Problem]:
    """Layers spread over GPUs by one process exclude FSDP and DeepSpeed."""
    parallel = config.parallel
    engine = "deepspeed" if parallel.deepspeed else "fsdp_config"
    if not (parallel.deepspeed or parallel.fsdp or parallel.fsdp_config):
        return
    for key in ("device_map", "max_memory", "gpu_memory_limit", "lora_on_cpu"):
        if getattr(config.placement, key):
            yield Problem(key, f"excludes `{engine}`, which places the weights itself")


# Computation


@about("bf16", "fp16", "bfloat16", "float16", "float32")
def one_precision(config: RunConfig) -> Iterator[Problem]:
    """`bf16`, `fp16`, `bfloat16`, `float16` and `float32` exclude each other."""
    keys = ("bf16", "fp16", "bfloat16", "float16", "float32")
    given = [key for key in keys if getattr(config.compute, key)]
    if len(given) > 1:
        others = ", ".join(f"`{key}`" for key in given[1:])
        hint = "`bf16: auto` alone fits most machines."
        yield Problem(given[0], f"excludes {others}: a run has one precision", hint)


@about("attn_implementation")
def known_attention(config: RunConfig) -> Iterator[Problem]:
    """`attn_implementation` is a known name."""
    name = config.compute.attn_implementation
    if name is None or name in ATTENTION:
        return
    if "/" in name:
        message = f"`{name}` is a kernel on the hub, which newtune does not fetch"
        yield Problem("attn_implementation", message, "Leave the key out.")
        return
    hint = did_you_mean(name, ATTENTION)
    known = ", ".join(f"`{known}`" for known in ATTENTION)
    yield Problem("attn_implementation", f"no attention `{name}`; known: {known}", sentence(hint))


# Adapter


@about(
    "adapter",
    "lora_target_modules",
    "lora_target_linear",
    "lora_target_parameters",
    "lora_model_dir",
)
def adapter_has_targets(config: RunConfig) -> Iterator[Problem]:
    """An adapter needs targets, unless it goes on from `lora_model_dir`."""
    keys = config.adapter
    targets = keys.lora_target_modules or keys.lora_target_linear or keys.lora_target_parameters
    if keys.adapter and not targets and not keys.lora_model_dir:
        message = f"`{keys.adapter}` needs the layers it goes to"
        hint = "Add `lora_target_linear: true`, or `lora_target_modules: [q_proj, v_proj]`."
        yield Problem("adapter", message, hint)


@about("peft_layers_pattern", "peft_layers_to_transform")
def pattern_needs_layers(config: RunConfig) -> Iterator[Problem]:
    """`peft_layers_pattern` needs `peft_layers_to_transform`."""
    if config.adapter.peft_layers_pattern and config.adapter.peft_layers_to_transform is None:
        yield Problem("peft_layers_pattern", "needs `peft_layers_to_transform`")


# Several processes


@about("deepspeed", "fsdp", "fsdp_config")
def one_sharding_engine(config: RunConfig) -> Iterator[Problem]:
    """`deepspeed` and FSDP exclude each other."""
    if config.parallel.deepspeed and (config.parallel.fsdp or config.parallel.fsdp_config):
        yield Problem("deepspeed", "excludes FSDP (`fsdp`, `fsdp_config`)", "Keep one of them.")


AXES = ("dp_shard_size", "dp_replicate_size", "tensor_parallel_size", "context_parallel_size")


@about("deepspeed", *AXES)
def deepspeed_lays_out_the_processes(config: RunConfig) -> Iterator[Problem]:
    """`deepspeed` shares a model over all processes: sizes of axes are for FSDP2."""
    for key in AXES:
        size = getattr(config.parallel, key)
        if config.parallel.deepspeed and size is not None and size > 1:
            yield Problem(
                key, "excludes `deepspeed`, which shares over all processes", "Keep one of them."
            )


@about("fsdp_config", "hub_strategy")
def parts_are_not_uploaded(config: RunConfig) -> Iterator[Problem]:
    """Checkpoints in parts (SHARDED_STATE_DICT) are no models that a hub could show."""
    keys, strategy = config.parallel.fsdp_config, config.output.hub_strategy
    in_parts = keys is not None and keys.state_dict_type in IN_PARTS
    if in_parts and config.output.hub_model_id and strategy not in (None, "end"):
        message = f"`{strategy}` uploads checkpoints as models, but they are to be in parts"
        hint = "Use `hub_strategy: end`, or `fsdp_config: {state_dict_type: FULL_STATE_DICT}`."
        yield Problem("hub_strategy", message, hint)


@about("ring_attn_func", "context_parallel_size")
def sequences_are_shared_by_heads(config: RunConfig) -> Iterator[Problem]:
    """`context_parallel_size` exchanges parts of a sequence for heads; a ring is not available."""
    keys = config.parallel
    if keys.ring_attn_func and (keys.context_parallel_size or 1) > 1:
        yield Problem(
            "ring_attn_func",
            "ring attention runs on GPUs only, where nobody has yet seen it give the numbers of "
            "one process",
            "Leave it out: newtune exchanges parts of a sequence for heads (Ulysses).",
        )


@about("resources_per_worker")
def resources_are_amounts(config: RunConfig) -> Iterator[Problem]:
    """`resources_per_worker` gives amounts: numbers above 0."""
    for name, amount in (config.parallel.resources_per_worker or {}).items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
            message = f"`{name}` is a number above 0, got `{amount}`"
            yield Problem("resources_per_worker", message, "Example: `{CPU: 4, GPU: 1}`.")


@about("fsdp_config")
def size_of_wrapped_pieces(config: RunConfig) -> Iterator[Problem]:
    """`auto_wrap_policy: SIZE_BASED_WRAP` needs `min_num_params`."""
    keys = config.parallel.fsdp_config
    if keys and keys.auto_wrap_policy == "SIZE_BASED_WRAP" and keys.min_num_params is None:
        yield Problem("fsdp_config.min_num_params", "is required with `SIZE_BASED_WRAP`")
