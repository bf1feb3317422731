"""Rules between keys: one small function each; all run, and all problems are reported together.

A rule's docstring is what `newtune explain KEY` shows. A rule is skipped when one of its keys has
been found wrong already.
"""

import re
import string
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from newtune.config.compute import ATTENTION
from newtune.config.data import PromptSection
from newtune.config.run import RunConfig
from newtune.config.training import OPTIMIZERS, SCHEDULES
from newtune.errors import Problem
from newtune.lookup import did_you_mean

Check = Callable[[RunConfig], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """A rule and the keys it is about."""

    keys: tuple[str, ...]
    check: Check

    @property
    def says(self) -> str:
        """The rule in one sentence."""
        return str(self.check.__doc__).splitlines()[0]


RULES: list[Rule] = []
"""Every rule, in the order of the sections."""


def about(*keys: str) -> Callable[[Check], Check]:
    """Enter a function into `RULES` as a rule about these keys."""

    def enter(check: Check) -> Check:
        RULES.append(Rule(keys, check))
        return check

    return enter


def broken_rules(config: RunConfig, wrong_keys: Collection[str] = ()) -> list[Problem]:
    """Return the problems of all rules but those about keys that are wrong already."""
    sound = [rule for rule in RULES if not set(rule.keys) & set(wrong_keys)]
    return [problem for rule in sound for problem in rule.check(config)]


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


@about("max_memory", "gpu_memory_limit")
def one_memory_limit(config: RunConfig) -> Iterator[Problem]:
    """`max_memory` and `gpu_memory_limit` exclude each other."""
    if config.placement.max_memory and config.placement.gpu_memory_limit:
        yield Problem("gpu_memory_limit", "excludes `max_memory`", "Keep one of them.")


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
    for key in ("device_map", "max_memory", "gpu_memory_limit"):
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
    """`attn_implementation` is a known name, or `owner/name` of a kernel on the hub."""
    name = config.compute.attn_implementation
    if name is None or name in ATTENTION or "/" in name:
        return
    hint = did_you_mean(name, ATTENTION)
    known = ", ".join(f"`{known}`" for known in ATTENTION)
    yield Problem("attn_implementation", f"no attention `{name}`; known: {known}", _sentence(hint))


# Data


@about("datasets", "pretraining_dataset")
def data_is_needed(config: RunConfig) -> Iterator[Problem]:
    """`datasets` is required."""
    if not config.data.datasets and not config.data.pretraining_dataset:
        yield Problem("datasets", "is required", "A list of entries with `path` and `type`.")


@about("datasets", "test_datasets", "pretraining_dataset")
def every_dataset_has_a_path(config: RunConfig) -> Iterator[Problem]:
    """Every dataset entry has a `path`."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        for index, entry in enumerate(getattr(config.data, key)):
            if not entry.path:
                yield Problem(f"{key}.{index}.path", "is required", "A file, folder or hub id.")


@about("datasets", "test_datasets")
def shard_exists(config: RunConfig) -> Iterator[Problem]:
    """`shards_idx` needs `shards`, and is below it: pieces count from 0."""
    for key in ("datasets", "test_datasets"):
        for index, entry in enumerate(getattr(config.data, key)):
            yield from _piece(f"{key}.{index}.shards_idx", entry.shards_idx, entry.shards, "shards")


@about("dataset_shard_num", "dataset_shard_idx")
def merged_shard_exists(config: RunConfig) -> Iterator[Problem]:
    """`dataset_shard_idx` needs `dataset_shard_num`, and is below it: pieces count from 0."""
    data = config.data
    yield from _piece(
        "dataset_shard_idx", data.dataset_shard_idx, data.dataset_shard_num, "dataset_shard_num"
    )


@about("datasets", "test_datasets")
def prompt_placeholders(config: RunConfig) -> Iterator[Problem]:
    """A custom prompt uses `{instruction}` and `{input}`; without an input, no `{input}`."""
    for key in ("datasets", "test_datasets"):
        for index, entry in enumerate(getattr(config.data, key)):
            if isinstance(entry.type, PromptSection):
                yield from _placeholders(entry.type, f"{key}.{index}.type")


@about("chat_template", "chat_template_jinja", "datasets", "test_datasets")
def jinja_template_is_there(config: RunConfig) -> Iterator[Problem]:
    """`chat_template: jinja` needs `chat_template_jinja`, which goes with no other template."""
    owners = [("", config.data)]
    for key in ("datasets", "test_datasets"):
        entries = enumerate(getattr(config.data, key))
        owners += [(f"{key}.{index}.", entry) for index, entry in entries]
    for prefix, owner in owners:
        name, text = owner.chat_template, owner.chat_template_jinja
        if name == "jinja" and not text:
            message = "`jinja` needs `chat_template_jinja`: the template, or a file that holds it"
            yield Problem(f"{prefix}chat_template", message)
        if text and name not in (None, "jinja"):
            yield Problem(f"{prefix}chat_template_jinja", f"excludes `chat_template: {name}`")


@about("val_set_size")
def held_out_part(config: RunConfig) -> Iterator[Problem]:
    """`val_set_size` is 0, a number of rows above 1, or a share between 0 and 1."""
    size = config.data.val_set_size
    if size == 1:
        message = "`1` could mean one row or all of them"
        hint = "Write a share such as 0.05, or a number of rows above 1."
        yield Problem("val_set_size", message, hint)
    elif isinstance(size, float) and size > 1 and size != int(size):
        hint = "Above 1 it counts rows; below 1 it is a share."
        yield Problem("val_set_size", f"`{size}` is no number of rows", hint)


@about("val_set_size", "test_datasets")
def one_source_of_held_out_data(config: RunConfig) -> Iterator[Problem]:
    """`val_set_size` and `test_datasets` exclude each other."""
    if config.data.val_set_size and config.data.test_datasets:
        yield Problem("val_set_size", "excludes `test_datasets`", "Keep one of them.")


@about("pretraining_dataset", "streaming", "max_steps")
def streams_need_an_end(config: RunConfig) -> Iterator[Problem]:
    """Streamed data has no known length: it needs `max_steps`."""
    streamed = config.data.pretraining_dataset or config.data.streaming
    if streamed and config.training.max_steps is None:
        yield Problem("max_steps", "is required with streamed data, whose length is unknown")


# Sequences


@about("sample_packing", "batch_flattening")
def one_way_to_join(config: RunConfig) -> Iterator[Problem]:
    """`sample_packing` excludes `batch_flattening: true`: packs are joined already."""
    if config.sequence.sample_packing and config.sequence.batch_flattening is True:
        hint = "Leave it out: packs are joined already."
        yield Problem("batch_flattening", "excludes `sample_packing`", hint)


@about("batch_flattening", "pad_to_sequence_len")
def flattened_rows_have_no_padding(config: RunConfig) -> Iterator[Problem]:
    """`batch_flattening` and `pad_to_sequence_len` exclude each other."""
    if config.sequence.batch_flattening is True and config.sequence.pad_to_sequence_len:
        message = "excludes `batch_flattening`, which lays rows end to end without padding"
        yield Problem("pad_to_sequence_len", message)


@about("min_sample_len", "sequence_len")
def lengths_leave_room(config: RunConfig) -> Iterator[Problem]:
    """`min_sample_len` is at most `sequence_len`."""
    shortest, longest = config.sequence.min_sample_len or 0, config.sequence.sequence_len
    if shortest > longest:
        yield Problem("min_sample_len", f"is {shortest}, above `sequence_len: {longest}`")


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
    """`optimizer` is a known name."""
    yield from _known("optimizer", config.training.optimizer, OPTIMIZERS)


@about("lr_scheduler")
def known_schedule(config: RunConfig) -> Iterator[Problem]:
    """`lr_scheduler` is a known name."""
    yield from _known("lr_scheduler", config.training.lr_scheduler, SCHEDULES)


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


# Several processes


@about("deepspeed", "fsdp", "fsdp_config")
def one_sharding_engine(config: RunConfig) -> Iterator[Problem]:
    """`deepspeed` and FSDP exclude each other."""
    if config.parallel.deepspeed and (config.parallel.fsdp or config.parallel.fsdp_config):
        yield Problem("deepspeed", "excludes FSDP (`fsdp`, `fsdp_config`)", "Keep one of them.")


@about("fsdp_config")
def size_of_wrapped_pieces(config: RunConfig) -> Iterator[Problem]:
    """`auto_wrap_policy: SIZE_BASED_WRAP` needs `min_num_params`."""
    keys = config.parallel.fsdp_config
    if keys and keys.auto_wrap_policy == "SIZE_BASED_WRAP" and keys.min_num_params is None:
        yield Problem("fsdp_config.min_num_params", "is required with `SIZE_BASED_WRAP`")


def has_held_out_data(config: RunConfig) -> bool:
    """Say whether some data is held out."""
    return bool(config.data.val_set_size or config.data.test_datasets)


def _piece(path: str, index: int | None, pieces: int | None, key: str) -> Iterator[Problem]:
    if index is not None and pieces is None:
        yield Problem(path, f"needs `{key}`, the number of pieces")
    elif index is not None and pieces is not None and index >= pieces:
        yield Problem(path, f"is {index}, but `{key}: {pieces}` has pieces 0 to {pieces - 1}")


def _placeholders(prompt: PromptSection, path: str) -> Iterator[Problem]:
    allowed = {
        "format": ("instruction", "input"),
        "no_input_format": ("instruction",),
        "system_format": ("system",),
    }
    for key, names in allowed.items():
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(getattr(prompt, key) or "")}
        except ValueError as error:
            yield Problem(f"{path}.{key}", f"{error}", "A literal brace is written `{{` or `}}`.")
            continue
        known = ", ".join(f"`{{{name}}}`" for name in names)
        for name in sorted(used - {None, *names}, key=str):
            hint = did_you_mean(str(name), names)
            message = f"`{{{name}}}` cannot be used here; allowed: {known}"
            yield Problem(f"{path}.{key}", message, _sentence(hint))


def _known(key: str, name: str, names: tuple[str, ...]) -> Iterator[Problem]:
    if name not in names:
        hint = did_you_mean(name, names) or f"Known: {', '.join(sorted(names))}."
        yield Problem(key, f"no {key} `{name}`", _sentence(hint))


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


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
