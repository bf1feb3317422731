"""Keys that change nothing here: what they ask for happens anyway, or nothing needs it.

Each is answered with a notice. A value that asks for the opposite is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from newtune.config.run import SECTION_OF, RunConfig, is_off
from newtune.errors import Problem


@dataclass(frozen=True)
class NoOp:
    """Why a key changes nothing, and which of its values newtune refuses, with the reason."""

    notice: str
    refused: tuple[Any, ...] = ()
    reason: str = ""


@dataclass
class Answers:
    """Notices for given keys that change nothing, those keys, and values that are refused."""

    notices: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


_FUSED_LOSS = NoOp("newtune's own fused loss does this for every run")
_OWN_LAYERS = NoOp("newtune runs the model's own layers; the result is the same")
_LAUNCHER = NoOp("it is read from the environment, where launchers set it")
_ALWAYS = NoOp("newtune always does this")

NO_OPS: Mapping[str, NoOp] = {
    "tokenizer_use_fast": NoOp(
        "transformers 5 has fast tokenizers only", (False,), "transformers 5 has no slow tokenizers"
    ),
    "tokenizer_save_jinja_files": NoOp(
        "the chat template is saved as a file of its own",
        (False,),
        "the chat template is always saved as a file of its own",
    ),
    "embeddings_skip_upcast": NoOp("frozen weights keep the precision of the run"),
    "experimental_skip_move_to_device": NoOp("each weight is loaded where it belongs"),
    "low_cpu_mem_usage": _ALWAYS,
    "relora_cpu_offload": NoOp("what ReLoRA has learned stands beside the base, unmerged"),
    "peft_autocast_adapter_dtype": NoOp("the precision keys decide how the adapter is held"),
    "merge_lora": NoOp("`newtune merge` is a command of its own"),
    "save_safetensors": NoOp(
        "newtune always writes safetensors", (False,), "newtune writes safetensors only"
    ),
    "hf_use_auth_token": NoOp(
        "the hub client uses this machine's token by itself",
        (False,),
        "the hub client uses this machine's token whenever there is one",
    ),
    "remove_unused_columns": NoOp("newtune's batches hold only what the model takes"),
    "skip_prepare_dataset": NoOp("rows that are tokenised already pass unchanged in any case"),
    "dataset_keep_in_memory": NoOp("data is memory-mapped, so it need not be held in memory"),
    "multipack_real_batches": NoOp("a micro-batch is always `micro_batch_size` packs"),
    "sample_packing_mp_start_method": NoOp("packing needs one process only"),
    "total_supervised_tokens": NoOp("newtune counts exactly"),
    "chunked_cross_entropy_num_chunks": NoOp("newtune sizes the chunks of its loss by memory"),
    "gc_steps": NoOp("newtune's steps leave no garbage behind"),
    "include_tokens_per_second": _ALWAYS,
    "include_tkps": _ALWAYS,
    "torchdistx_path": NoOp("newtune does not use torchdistx"),
    "eval_table_size": NoOp("`eval_generate` writes predictions to the run's folder"),
    "debug": NoOp("`newtune data CONFIG` shows the data"),
    "local_rank": _LAUNCHER,
    "world_size": _LAUNCHER,
    "flash_optimum": NoOp("transformers has replaced it by sdpa"),
    **dict.fromkeys(
        (
            "cut_cross_entropy",
            "chunked_cross_entropy",
            "flash_attn_cross_entropy",
            "liger_cross_entropy",
            "liger_fused_linear_cross_entropy",
            "unsloth_cross_entropy_loss",
        ),
        _FUSED_LOSS,
    ),
    **dict.fromkeys(
        (
            "liger_rope",
            "liger_rms_norm",
            "liger_rms_norm_gated",
            "liger_layer_norm",
            "liger_swiglu",
            "liger_glu_activation",
            "flash_attn_rms_norm",
            "flash_attn_fuse_qkv",
            "flash_attn_fuse_mlp",
            "unsloth_lora_mlp",
            "unsloth_lora_qkv",
            "unsloth_lora_o",
            "unsloth_rms_norm",
            "unsloth_rope",
        ),
        _OWN_LAYERS,
    ),
}
"""Key → why it changes nothing."""

PLUGINS: Mapping[str, str] = {
    "LigerPlugin": "newtune's own fused loss replaces it",
    "CutCrossEntropyPlugin": "newtune's own fused loss replaces it",
}
"""Class name of a plugin → the notice that answers it; every other plugin is refused."""


def keys_that_change_nothing(config: RunConfig) -> Answers:
    """Answer every given key of `NO_OPS` and every plugin."""
    answers = Answers()
    for key, no_op in NO_OPS.items():
        section = getattr(config, SECTION_OF[key])
        if key not in section.given():
            continue
        value = section.peek(key)
        answers.keys.append(key)
        if any(value is refused for refused in no_op.refused):
            answers.problems.append(
                Problem(key, f"`{_yaml(value)}` is refused: {no_op.reason}", "Leave it out.")
            )
        elif not is_off(value):
            answers.notices.append(f"`{key}` changes nothing: {no_op.notice}.")
    _answer_plugins(config, answers)
    return answers


def _answer_plugins(config: RunConfig, answers: Answers) -> None:
    answers.keys.append("plugins")
    for index, plugin in enumerate(config.compute.peek("plugins") or ()):
        said = PLUGINS.get(plugin.rsplit(".", 1)[-1])
        if said:
            answers.notices.append(f"`plugins: {plugin}` changes nothing: {said}.")
        else:
            known = ", ".join(PLUGINS)
            message = f"newtune has no plugin `{plugin}`"
            hint = f"Remove it; only {known} are understood."
            answers.problems.append(Problem(f"plugins.{index}", message, hint))


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
