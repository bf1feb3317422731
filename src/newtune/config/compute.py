"""Precision, attention, memory against time, kernels, compilation."""

from typing import Any, Literal

from newtune.config.section import Positive, Section, Strings

ATTENTION = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "xformers",
    "newtune_packed",
)
"""The values of `attn_implementation`."""


class ComputeSection(Section):
    """How the numbers are computed."""

    bf16: Literal["auto"] | bool | None = None
    """Mixed precision in bfloat16: frozen weights in 16 bit, trained weights and optimizer state
    in float32, forward under autocast. `auto` (also when no precision key is given): where the
    device multiplies bfloat16 in hardware."""
    fp16: bool | None = None
    """Mixed precision in float16, with loss scaling. Never chosen on its own."""
    tf32: Literal["auto"] | bool | None = None
    """Let float32 multiplications round to TF32 on NVIDIA GPUs. `auto`: where the GPU has it."""
    bfloat16: bool | None = None
    """Everything in bfloat16, without autocast and without float32 masters."""
    float16: bool | None = None
    """Everything in float16, without autocast and without float32 masters."""
    float32: bool | None = None
    """Everything in float32."""
    attn_implementation: str | None = None
    """Attention: `eager`, `sdpa`, `flex_attention`, `flash_attention_2`, `flash_attention_3`,
    `flash_attention_4`, `xformers` or `newtune_packed`.
    Empty: the fastest that this machine has and that keeps packed examples apart."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a
    third more time."""
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    """Options of `gradient_checkpointing`, such as `use_reentrant: false` (the default)."""
    torch_compile: Literal["auto"] | bool | None = None
    """Compile the model with torch.compile."""
    torch_compile_backend: str | None = None
    """Compiler backend of `torch_compile`."""
    torch_compile_mode: str | None = None
    """Mode of `torch_compile`: default, reduce-overhead or max-autotune."""
    flex_attn_compile_kwargs: dict[str, Any] | None = None
    """Arguments of torch.compile for flex attention."""
    lora_mlp_kernel: bool | None = None
    """Own autograd function and fused activation for LoRA on MLP layers."""
    lora_qkv_kernel: bool | None = None
    """Own autograd function for LoRA on the query, key and value projections."""
    lora_o_kernel: bool | None = None
    """Own autograd function for LoRA on the attention's output projection."""
    lora_embedding_kernel: bool | None = None
    """Own autograd function for LoRA on embeddings."""
    plugins: Strings | None = None
    """Extensions by dotted class name. The Liger and cut-cross-entropy plugins are answered by
    newtune's own fused loss, with a notice; any other is refused by name."""
    liger_rope: bool | None = None
    """Liger's rotary embedding. newtune runs the model's own implementation: same result."""
    liger_rms_norm: bool | None = None
    """Liger's RMSNorm. newtune runs the model's own implementation: same result."""
    liger_rms_norm_gated: bool | None = None
    """Liger's gated RMSNorm. newtune runs the model's own implementation: same result."""
    liger_layer_norm: bool | None = None
    """Liger's LayerNorm. newtune runs the model's own implementation: same result."""
    liger_swiglu: bool | None = None
    """Liger's SwiGLU. newtune runs the model's own implementation: same result."""
    liger_glu_activation: bool | None = None
    """Liger's gated activations. newtune runs the model's own implementation: same result."""
    liger_cross_entropy: bool | None = None
    """Liger's cross entropy. newtune's own fused loss does this for every run."""
    liger_fused_linear_cross_entropy: bool | None = None
    """Liger's cross entropy fused with the output projection. newtune's own fused loss does this
    for every run."""
    liger_use_token_scaling: bool | None = None
    """Weight each token's loss by its probability."""
    cut_cross_entropy: bool | None = None
    """Cross entropy without materialised logits. newtune's own fused loss does this for every
    run."""
    chunked_cross_entropy: bool | None = None
    """Cross entropy in chunks. newtune's own fused loss does this for every run."""
    chunked_cross_entropy_num_chunks: Positive | None = None
    """Number of chunks of `chunked_cross_entropy`. newtune sizes its chunks by memory."""
    flash_attn_cross_entropy: bool | None = None
    """flash-attn's cross entropy. newtune's own fused loss does this for every run."""
    flash_attn_rms_norm: bool | None = None
    """flash-attn's RMSNorm. newtune runs the model's own implementation: same result."""
    flash_attn_fuse_qkv: bool | None = None
    """One matrix for query, key and value. newtune runs the model's own layers: same result."""
    flash_attn_fuse_mlp: bool | None = None
    """Fused MLP of flash-attn. newtune runs the model's own layers: same result."""
    landmark_attention: bool | None = None
    """Landmark attention."""
    xpos_rope: bool | None = None
    """Rotary embedding with decay (xPos)."""
    use_scattermoe: bool | None = None
    """ScatterMoE's kernels for mixtures of experts."""
    use_sonicmoe: bool | None = None
    """SonicMoE's kernels for mixtures of experts."""
    use_onebitllms: bool | None = None
    """Train a model of one-bit weights."""
    s2_attention: bool | None = None
    """Shifted sparse attention."""
    sage_attention: bool | None = None
    """SageAttention, with 8-bit products."""
    flash_optimum: bool | None = None
    """BetterTransformer, which transformers has since replaced by sdpa."""
    unsloth_cross_entropy_loss: bool | None = None
    """Unsloth's cross entropy. newtune's own fused loss does this for every run."""
    unsloth_lora_mlp: bool | None = None
    """Unsloth's LoRA on MLP layers: faster, same result."""
    unsloth_lora_qkv: bool | None = None
    """Unsloth's LoRA on query, key and value: faster, same result."""
    unsloth_lora_o: bool | None = None
    """Unsloth's LoRA on the output projection: faster, same result."""
    unsloth_rms_norm: bool | None = None
    """Unsloth's RMSNorm: faster, same result."""
    unsloth_rope: bool | None = None
    """Unsloth's rotary embedding: faster, same result."""
    tiled_mlp: bool | None = None
    """Compute MLP layers in pieces along the sequence, for very long ones."""
    tiled_mlp_num_shards: Positive | None = None
    """Number of pieces of `tiled_mlp`."""
    tiled_mlp_use_original_mlp: bool | None = None
    """Use the model's own MLP in `tiled_mlp`."""
    scaling_softmax: bool | None = None
    """Attention with a softmax scaled by the sequence's length (SSMax)."""
    scaling_softmax_factor: float | None = None
    """Factor of `scaling_softmax`."""
    scaling_softmax_bias: float | None = None
    """Bias of `scaling_softmax`."""
    gemma4_hybrid_attn_impl: bool | None = None
    """Different attention for Gemma 4's local and global layers."""
    gc_steps: int | None = None
    """Collect Python's garbage every so many steps. newtune's steps leave none behind, so this
    changes nothing."""
    profiler_steps: Positive | None = None
    """Record the first steps with torch's profiler."""
    profiler_steps_start: int | None = None
    """First step of `profiler_steps`."""
    trainer_cls: str | None = None
    """Another trainer class."""
