"""Keys that newtune knows but cannot honour yet: one table, refused by one rule."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from newtune.config.patterns import matches
from newtune.config.run import RunConfig, asks_for_something
from newtune.config.section import Section
from newtune.errors import Problem


@dataclass(frozen=True)
class Later:
    """What is missing, and the values of a key that ask for nothing of it."""

    missing: str
    harmless: tuple[Any, ...] = ()
    hint: str = "Leave the key out."
    some_values_act: bool = False


_QUANTISED = Later("this kind of quantised base model is not available yet")
_OFFLOAD = Later("offloading weights or activations is not available yet")
_KERNELS = Later("LoRA kernels are not available yet")
_COMPILE = Later("compiling the model is not available yet")
_FP8 = Later("8-bit floating point is not available yet")
_QAT = Later("quantisation-aware training is not available yet")
_PROCESSES = Later("sharing a model between processes is not available yet; each holds all of it")
_PREFERENCE = Later("objectives other than the next token's loss are not available yet")
_MULTIMODAL = Later("multimodal models are not available yet")
_EXPERTS = Later("special handling of mixtures of experts is not available yet")
_TILED = Later("tiled MLPs are not available yet")
_ATTENTION = Later("this attention is not available")
_POSE = Later("PoSE is not available yet")
_DISTIL = Later("distillation is not available yet")
_LOSS = Later("this loss is not available yet")
_OPTIMIZER = Later("this optimizer is not available yet")
_BENCHMARKS = Later("benchmarks during training are not available yet")
_SAMPLES = Later("sampling texts during training is not available yet; see `eval_generate`")
_GROUPS = Later("learning rates for groups of modules are not available yet")
_SELECTION = Later("this choice of trained layers is not available yet")
_EMBEDDINGS = Later("this treatment of the embeddings is not available yet")
_WEB = Later("a web page to chat is not available yet; see `newtune chat`")
_METRICS = Later("this way of reporting is not available yet")
_DATA = Later("this reading of data is not available yet")

LATER: Mapping[str, Later] = {
    "quantize_moe_experts": _QUANTISED,
    "model_quantization_config": Later(
        "how a base is stored is read from its checkpoint, MXFP4 and FP8 dequantised on loading",
        hint="Leave it and `model_quantization_config_kwargs` out; to quantise, `adapter: qlora`.",
    ),
    "qlora_sharded_model_loading": _QUANTISED,
    "qat": _QAT,
    "quantization": _QAT,
    "llmcompressor": _QAT,
    "fp8*": _FP8,
    "device": Later("one device is chosen by CUDA_VISIBLE_DEVICES, several by `device_map`"),
    "layer_offloading": _OFFLOAD,
    "activation_offloading": _OFFLOAD,
    "lora_mlp_kernel": _KERNELS,
    "lora_qkv_kernel": _KERNELS,
    "lora_o_kernel": _KERNELS,
    "lora_embedding_kernel": _KERNELS,
    "use_kernels": Later("kernels are not fetched from the hub; the model's own layers run"),
    "torch_compile*": _COMPILE,
    "flex_attn_compile_kwargs": _COMPILE,
    "peft_layer_replication": Later("repeating layers is not available yet"),
    "deepcompile": _PROCESSES,
    "expert_parallel_size": Later(
        "experts are not dealt out over processes",
        (1,),
        "Use `dp_shard_size`, which shards experts as it does every parameter.",
    ),
    "rl": _PREFERENCE,
    "rl_beta": _PREFERENCE,
    "rpo_alpha": _PREFERENCE,
    "orpo_alpha": _PREFERENCE,
    "simpo_gamma": _PREFERENCE,
    "cpo_alpha": _PREFERENCE,
    "kto_*": _PREFERENCE,
    "dpo_*": _PREFERENCE,
    "precompute_ref_log_probs": _PREFERENCE,
    "reward_model": _PREFERENCE,
    "process_reward_model": _PREFERENCE,
    "center_rewards_coefficient": _PREFERENCE,
    "num_labels": _PREFERENCE,
    "trl": _PREFERENCE,
    "vllm": _PREFERENCE,
    "ebft": _PREFERENCE,
    "max_prompt_len": _PREFERENCE,
    "*datasets.*.type.field_prompt": _PREFERENCE,
    "*datasets.*.type.field_chosen": _PREFERENCE,
    "*datasets.*.type.field_rejected": _PREFERENCE,
    "*datasets.*.type.field_completion": _PREFERENCE,
    "*datasets.*.type.field_label": _PREFERENCE,
    "*datasets.*.type.prompt_format": _PREFERENCE,
    "*datasets.*.type.chosen_format": _PREFERENCE,
    "*datasets.*.type.rejected_format": _PREFERENCE,
    "*datasets.*.type.completion_format": _PREFERENCE,
    "*datasets.*.field_prompt": _PREFERENCE,
    "*datasets.*.field_chosen": _PREFERENCE,
    "*datasets.*.field_rejected": _PREFERENCE,
    "*datasets.*.field_completion": _PREFERENCE,
    "*datasets.*.field_label": _PREFERENCE,
    "*datasets.*.step_separator": _PREFERENCE,
    "*datasets.*.max_completion_length": _PREFERENCE,
    "*datasets.*.train_on_last_step_only": _PREFERENCE,
    "*datasets.*.input_format": _PREFERENCE,
    "*datasets.*.input_transform": _DATA,
    "*datasets.*.logprobs_field": _DISTIL,
    "*datasets.*.temperature": _DISTIL,
    "kd_*": _DISTIL,
    "processor_type": _MULTIMODAL,
    "image_size": _MULTIMODAL,
    "image_resize_algorithm": _MULTIMODAL,
    "freeze_mm_modules": _MULTIMODAL,
    "experts_implementation": _EXPERTS,
    "llama4_linearized_experts": _EXPERTS,
    "reinit_weights": Later("training from random weights is not available yet"),
    "cls_model_config": Later("another configuration class is not available yet"),
    "fix_untrained_tokens": _EMBEDDINGS,
    "shrink_embeddings": _EMBEDDINGS,
    "mean_resizing_embeddings": _EMBEDDINGS,
    "added_tokens_overrides": _EMBEDDINGS,
    "tokenizer_use_mistral_common": Later("mistral-common tokenizers are not available yet"),
    "tiled_mlp": _TILED,
    "use_scattermoe": _EXPERTS,
    "use_sonicmoe": _EXPERTS,
    "use_onebitllms": _QUANTISED,
    "landmark_attention": _ATTENTION,
    "xpos_rope": _ATTENTION,
    "s2_attention": _ATTENTION,
    "sage_attention": _ATTENTION,
    "scaling_softmax*": _ATTENTION,
    "gemma4_hybrid_attn_impl": _ATTENTION,
    "use_pose": _POSE,
    "liger_use_token_scaling": _LOSS,
    "use_eaft": _LOSS,
    "diffusion": _LOSS,
    "dion_*": _OPTIMIZER,
    "grokfast_*": _OPTIMIZER,
    "adam_beta3": _OPTIMIZER,
    "adam_epsilon2": _OPTIMIZER,
    "optim_target_modules": _OPTIMIZER,
    "lr_groups": _GROUPS,
    "embedding_lr_scale": _GROUPS,
    "lr_div_factor": Later("give `lr_scheduler_kwargs: {start_ratio: ...}` instead"),
    "auto_find_batch_size": Later("trying smaller batches is not available; choose the size"),
    "lisa_*": _SELECTION,
    "spectrum_*": _SELECTION,
    "do_causal_lm_eval": _BENCHMARKS,
    "do_bench_eval": _BENCHMARKS,
    "lm_eval_*": _BENCHMARKS,
    "generate_samples": _SAMPLES,
    "dataloader_drop_last": Later("newtune trains every example; none can be left out"),
    "accelerator_config": Later("accelerate's own options are not available"),
    "trainer_cls": Later("another trainer class is not available"),
    "profiler_steps*": Later("profiling is not available yet"),
    "merge_method": Later("choosing how the merge uses memory is not available yet"),
    "dynamic_checkpoint": Later("checkpoints on demand are not available yet"),
    "use_otel_metrics": _METRICS,
    "gradio_*": _WEB,
}
"""Key, or pattern of dotted keys → what is missing. Keys that only refine a refused one (such as
`bench_split`) are answered as having no effect, see `idle.py`."""


def why_later(key: str) -> Later | None:
    """Return what is missing for a dotted key, or None for one that newtune honours."""
    if key in LATER:
        return LATER[key]
    return next((later for pattern, later in LATER.items() if matches(key, pattern)), None)


def refused_keys(config: RunConfig) -> list[Problem]:
    """Return a problem for each given key whose engine is missing."""
    problems = []
    for _, section in config.sections():
        problems += list(_refused(section, ""))
        for path, nested in section.nested():
            problems += list(_refused(nested, f"{path}."))
    return problems


def _refused(section: Section, prefix: str) -> Iterator[Problem]:
    for key in section.key_names():
        if key not in section.given() or not asks_for_something(section, key):
            continue
        later = why_later(f"{prefix}{key}")
        if later is None or section.peek(key) in later.harmless:
            continue
        yield Problem(f"{prefix}{key}", f"known, but {later.missing}", later.hint)
