"""Rules about restarts: ReLoRA's rounds, and a learning rate that starts anew."""

from collections.abc import Iterator

from newtune.config.rules.rule import about
from newtune.config.run import RunConfig
from newtune.errors import Problem

PRUNED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
"""Optimizers whose state holds plain numbers, of which a share can be dropped."""
RESET_OPTIMIZERS = (*PRUNED_OPTIMIZERS, "adamw_bnb_8bit", "adamw_8bit")
"""Those whose state can be dropped whole."""


@about("relora", "relora_steps", "jagged_restart_steps")
def relora_needs_an_interval(config: RunConfig) -> Iterator[Problem]:
    """`relora: true` needs `relora_steps` or `jagged_restart_steps`, not both."""
    keys, jagged = config.adapter, config.training.jagged_restart_steps
    if keys.relora and not keys.relora_steps and not jagged:
        yield Problem("relora", "needs the steps of a round", "Add `relora_steps: 500`.")
    if keys.relora is not False and keys.relora_steps and jagged:
        hint = "Keep `relora_steps`: the learning rate restarts with it."
        yield Problem("jagged_restart_steps", "excludes `relora_steps`", hint)


@about("relora", "peft_use_dora", "lora_modules_to_save", "lora_target_parameters")
def relora_starts_low_rank_matrices_anew(config: RunConfig) -> Iterator[Problem]:
    """ReLoRA starts LoRA matrices anew; what else an adapter may train has no second start."""
    if config.relora_every is None:
        return
    keys = config.adapter
    others = {
        "peft_use_dora": keys.peft_use_dora,
        "lora_modules_to_save": keys.lora_modules_to_save,
        "lora_target_parameters": keys.lora_target_parameters,
        "peft_trainable_token_indices": keys.peft_trainable_token_indices,
    }
    for key in (key for key, given in others.items() if given):
        yield Problem(key, "excludes ReLoRA, which starts the matrices of linear layers anew")
    if keys.lora_model_dir:
        hint = "Merge that adapter, and give the result as `base_model`."
        yield Problem(
            "lora_model_dir", "excludes ReLoRA, which starts with a round of its own", hint
        )
    init = keys.peft_init_lora_weights
    if init not in (None, True, "gaussian"):
        reason = "excludes ReLoRA: a round starts without changing the model, from random numbers"
        yield Problem("peft_init_lora_weights", reason, "`gaussian` and true go with it.")


@about("relora", "relora_prune_method", "optimizer")
def relora_knows_the_state(config: RunConfig) -> Iterator[Problem]:
    """ReLoRA drops a share of AdamW's state; of an 8-bit one it drops all (`reset`)."""
    name = config.training.optimizer
    if config.relora_every is None or name in PRUNED_OPTIMIZERS:
        return
    if name not in RESET_OPTIMIZERS:
        hint = f"`{'`, `'.join(RESET_OPTIMIZERS)}` go with it."
        yield Problem("optimizer", f"`{name}` excludes ReLoRA, which drops its state", hint)
    elif config.adapter.relora_prune_method not in (None, "reset"):
        reason = f"cannot drop a share of the state of `{name}`, which is stored in 8 bits"
        hint = "Write `relora_prune_method: reset`, or `optimizer: adamw_torch`."
        yield Problem("relora_prune_method", reason, hint)


@about("relora_steps", "relora_warmup_steps", "relora_anneal_steps", "jagged_restart_steps")
def restarts_leave_room(config: RunConfig) -> Iterator[Problem]:
    """Warm-up and cool-down of restarts fit between two of them."""
    for key, every, dents in _intervals(config):
        if every and sum(dents) > every:
            message = f"is {every}, less than its warm-up and cool-down ({sum(dents)} steps)"
            yield Problem(key, message, "Lengthen it, or shorten them.")


def _intervals(config: RunConfig) -> Iterator[tuple[str, int | None, tuple[int, int]]]:
    adapter, training = config.adapter, config.training
    relora = (adapter.relora_warmup_steps or 0, adapter.relora_anneal_steps or 0)
    jagged = (
        training.jagged_restart_warmup_steps or 0,
        training.jagged_restart_anneal_steps or 0,
    )
    yield "relora_steps", adapter.relora_steps, relora
    yield "jagged_restart_steps", training.jagged_restart_steps, jagged
