"""Rules about adapters: how they start, and what they exclude."""

import re
from collections.abc import Iterator, Mapping

from newtune.config.rules.rule import about
from newtune.config.run import RunConfig
from newtune.errors import Problem
from newtune.lookup import did_you_mean, sentence

STARTS = ("gaussian", "pissa", "pissa_niter_4", "olora", "orthogonal", "eva")
"""The names that `peft_init_lora_weights` takes; any number may stand for the 4."""

_PREPARED = "it needs what a preparation over data of its own finds, which newtune does not run"
REFUSED_STARTS: Mapping[str, str] = {
    "loftq": "it is asked for by `peft: {loftq_config: {loftq_bits: 4}}`",
    "corda": _PREPARED,
    "lora_ga": _PREPARED,
    "mica": "it trains the A matrices alone, which newtune does not count yet",
}


@about("peft_init_lora_weights")
def known_start(config: RunConfig) -> Iterator[Problem]:
    """`peft_init_lora_weights` is true, false, or the name of an initialisation."""
    key, name = "peft_init_lora_weights", config.adapter.peft_init_lora_weights
    if not isinstance(name, str) or name in STARTS or re.fullmatch(r"pissa_niter_\d+", name):
        return
    if name in REFUSED_STARTS:
        yield Problem(key, f"`{name}` is not supported: {REFUSED_STARTS[name]}", "Or leave it out.")
        return
    hint = did_you_mean(name, STARTS) or f"Known: {', '.join(STARTS)}."
    yield Problem(key, f"no initialisation `{name}`", sentence(hint))


@about("peft_init_lora_weights", "lora_r")
def orthogonal_needs_an_even_rank(config: RunConfig) -> Iterator[Problem]:
    """`peft_init_lora_weights: orthogonal` needs an even `lora_r`."""
    if config.adapter.peft_init_lora_weights == "orthogonal" and config.adapter.lora_r % 2:
        yield Problem("lora_r", f"is {config.adapter.lora_r}, and `orthogonal` needs an even rank")


@about("lora_target_parameters", "lora_dropout", "peft_init_lora_weights")
def bare_parameters_take_plain_lora(config: RunConfig) -> Iterator[Problem]:
    """`lora_target_parameters` needs `lora_dropout: 0` and a start that looks at no weights."""
    keys = config.adapter
    if not (keys.adapter and keys.lora_target_parameters) or keys.lora_model_dir:
        return
    if keys.lora_dropout:
        reason = f"is {keys.lora_dropout:g}; a LoRA on bare parameters (`lora_target_parameters`)"
        yield Problem("lora_dropout", f"{reason} has no dropout", "Write `lora_dropout: 0`.")
    init = keys.peft_init_lora_weights
    if isinstance(init, str) and init != "gaussian":
        reason = "looks at a layer's weights or inputs, and bare parameters are no layer"
        yield Problem("peft_init_lora_weights", f"`{init}` {reason}", "Leave the key out.")
    if keys.peft_use_dora:
        yield Problem("peft_use_dora", "excludes `lora_target_parameters`: PEFT has no such LoRA")


@about("peft_init_lora_weights", "pretraining_dataset", "streaming")
def eva_needs_data_at_hand(config: RunConfig) -> Iterator[Problem]:
    """`peft_init_lora_weights: eva` looks at the training data first, which a stream forbids."""
    if config.adapter.peft_init_lora_weights == "eva" and config.is_streamed:
        reason = "`eva` looks at the training data before the first step, and a stream is read once"
        yield Problem("peft_init_lora_weights", reason, "Prepare the data, or leave the key out.")


@about("peft_init_lora_weights", "load_in_4bit", "load_in_8bit", "adapter")
def quantised_base_keeps_its_weights(config: RunConfig) -> Iterator[Problem]:
    """An initialisation that takes a part out of the base's weights needs a base stored plainly."""
    init = config.adapter.peft_init_lora_weights
    if not _is_quantised(config) or not isinstance(init, str):
        return
    if init.startswith(("pissa", "olora")):
        reason = "takes a part out of the base's weights, which a quantised base cannot give"
        yield Problem("peft_init_lora_weights", f"`{init}` {reason}", "Leave the key out.")


@about("peft", "load_in_4bit", "load_in_8bit", "adapter")
def loftq_needs_a_quantised_base(config: RunConfig) -> Iterator[Problem]:
    """LoftQ repairs what quantising a base loses: it needs one in as many bits, and its start."""
    keys = config.adapter
    loftq = keys.peft.loftq_config if keys.peft else None
    if loftq is None or not keys.adapter:
        return
    path, bits = "peft.loftq_config", 8 if config.quantization.load_in_8bit else 4
    if loftq.loftq_bits is None:
        yield Problem(f"{path}.loftq_bits", "is required", f"Write `loftq_bits: {bits}`.")
    elif not _is_quantised(config):
        hint = "Use `adapter: qlora`: it stores the base in 4 bits, which LoftQ starts from."
        yield Problem(path, "needs a base that is quantised to 4 or 8 bits at loading", hint)
    elif loftq.loftq_bits != bits:
        message = f"is {loftq.loftq_bits}, but the base is stored in {bits} bits"
        yield Problem(f"{path}.loftq_bits", message, f"Write `loftq_bits: {bits}`.")
    if loftq.loftq_iter not in (None, 1):
        reason = "more than one iteration would quantise another base than the checkpoint's"
        yield Problem(f"{path}.loftq_iter", f"is {loftq.loftq_iter}: {reason}", "Leave it out.")
    if keys.peft_init_lora_weights is not None:
        yield Problem("peft_init_lora_weights", f"excludes `{path}`, which is a start of its own")
    if keys.peft_use_dora:
        reason = "its magnitudes would be those of the weights before the repair"
        yield Problem("peft_use_dora", f"excludes `{path}`: {reason}")


def _is_quantised(config: RunConfig) -> bool:
    keys = config.quantization
    return keys.load_in_4bit or keys.load_in_8bit or config.adapter.adapter == "qlora"


@about("loraplus_lr_ratio", "optimizer")
def lora_plus_needs_groups(config: RunConfig) -> Iterator[Problem]:
    """LoRA+ needs an optimizer whose groups have learning rates of their own."""
    name = config.training.optimizer
    if config.adapter.loraplus_lr_ratio and name.startswith(("galore", "apollo")):
        reason = f"does not act with `optimizer: {name}`, which makes its groups itself"
        yield Problem("loraplus_lr_ratio", reason, "`adamw_torch` and most others take it.")


@about("embedding_lr", "loraplus_lr_ratio")
def one_rate_of_embeddings(config: RunConfig) -> Iterator[Problem]:
    """`embedding_lr` and LoRA+ exclude each other: both give embeddings a learning rate."""
    if config.training.embedding_lr is not None and config.adapter.loraplus_lr_ratio:
        hint = "`loraplus_lr_embedding` is the rate of an adapter on an embedding."
        yield Problem("embedding_lr", "excludes `loraplus_lr_ratio`", hint)
