"""What is minimised, when it is not the next token's loss."""

from typing import Any, Literal

from newtune.config.section import Floats, Positive, Section, Strings


class TrlSection(Section):
    """Options of online reinforcement learning."""

    beta: float | None = None
    """Weight of the distance to the reference model."""
    max_completion_length: Positive | None = None
    """Longest answer in tokens."""
    max_prompt_length: Positive | None = None
    """Longest prompt in tokens."""
    use_vllm: bool | None = None
    """Generate with vLLM."""
    vllm_mode: str | None = None
    """Where vLLM runs: server or colocate."""
    vllm_device: str | None = None
    """Device of vLLM."""
    vllm_gpu_memory_utilization: float | None = None
    """Share of the GPU's memory for vLLM."""
    vllm_dtype: str | None = None
    """Precision of vLLM."""
    vllm_max_model_len: Positive | None = None
    """Longest sequence of vLLM."""
    vllm_server_host: str | None = None
    """Address of the vLLM server."""
    vllm_server_port: Positive | None = None
    """Port of the vLLM server."""
    vllm_server_timeout: Positive | None = None
    """Seconds to wait for the vLLM server."""
    vllm_guided_decoding_regex: str | None = None
    """Regular expression that answers must match."""
    vllm_enable_prefix_caching: bool | None = None
    """Share computation of common prefixes."""
    reward_funcs: Strings | None = None
    """Reward functions."""
    reward_weights: Floats | None = None
    """Weights of the reward functions."""
    num_generations: Positive | None = None
    """Answers per prompt."""
    log_completions: bool | None = None
    """Log the answers."""
    num_completions_to_print: Positive | None = None
    """How many answers are logged."""
    sync_ref_model: bool | None = None
    """Let the reference model follow."""
    ref_model_mixup_alpha: float | None = None
    """How far the reference model follows."""
    ref_model_sync_steps: Positive | None = None
    """How often the reference model follows, in steps."""
    scale_rewards: bool | str | None = None
    """Divide rewards by their deviation."""
    temperature: float | None = None
    """Temperature of the answers."""
    top_p: float | None = None
    """Nucleus of the answers."""
    top_k: int | None = None
    """Candidates of the answers."""
    min_p: float | None = None
    """Least probability of a candidate."""
    repetition_penalty: float | None = None
    """Penalty of repeated tokens."""
    generation_kwargs: dict[str, Any] | None = None
    """Further options of the generation."""
    num_iterations: Positive | None = None
    """Updates per batch of answers."""
    epsilon: float | None = None
    """Clipping of the probability ratio."""
    epsilon_high: float | None = None
    """Upper clipping of the probability ratio."""
    use_liger_loss: bool | None = None
    """Liger's fused loss."""
    loss_type: str | None = None
    """Loss: grpo, bnpo, dr_grpo, ..."""
    mask_truncated_completions: bool | None = None
    """Leave answers that were cut off out of the loss."""
    rollout_func: str | None = None
    """Function that makes the answers."""
    multi_objective_aggregation: str | None = None
    """How several rewards are joined."""
    importance_sampling_level: str | None = None
    """Probability ratio per token or per sequence."""


class VllmSection(Section):
    """Options of a vLLM server for online reinforcement learning."""

    device: str | None = None
    """Device."""
    tensor_parallel_size: Positive | None = None
    """Processes that share each layer."""
    data_parallel_size: Positive | None = None
    """Copies of the model."""
    gpu_memory_utilization: float | None = None
    """Share of the GPU's memory."""
    dtype: str | None = None
    """Precision."""
    max_model_len: Positive | None = None
    """Longest sequence in tokens."""
    enable_prefix_caching: bool | None = None
    """Share computation of common prefixes."""
    host: str | None = None
    """Address."""
    port: Positive | None = None
    """Port."""
    enable_reasoning: bool | None = None
    """Parse reasoning out of answers."""
    reasoning_parser: str | None = None
    """How reasoning is parsed."""
    enforce_eager: bool | None = None
    """Run without CUDA graphs."""
    serve_module: str | None = None
    """Module that serves."""
    worker_extension_cls: str | None = None
    """Class that receives new weights."""


class ObjectiveSection(Section):
    """Preference learning, rewards, reinforcement learning."""

    rl: Literal["dpo", "ipo", "kto", "orpo", "simpo", "grpo", "gdpo", "ebft"] | None = None
    """Objective instead of the next token's loss."""
    rl_beta: float | None = None
    """Weight of the distance to the reference model."""
    rpo_alpha: float | None = None
    """Weight of the next-token loss beside DPO's."""
    orpo_alpha: float | None = None
    """Weight of ORPO's preference term."""
    simpo_gamma: float | None = None
    """Margin of SimPO."""
    cpo_alpha: float | None = None
    """Weight of the next-token loss beside CPO's."""
    kto_desirable_weight: float | None = None
    """Weight of good answers in KTO."""
    kto_undesirable_weight: float | None = None
    """Weight of bad answers in KTO."""
    dpo_use_weighting: bool | None = None
    """Weight pairs by how likely the model makes them (WPO)."""
    dpo_use_logits_to_keep: bool | None = None
    """Compute only the logits that DPO needs."""
    dpo_use_liger_kernel: bool | None = None
    """Liger's fused DPO loss."""
    dpo_label_smoothing: float | None = None
    """Share of pairs taken to be wrong."""
    dpo_norm_loss: bool | None = None
    """Divide DPO's log-probabilities by length."""
    dpo_padding_free: bool | None = None
    """Lay the answers of a batch end to end."""
    dpo_generate_during_eval: bool | None = None
    """Generate answers in evaluation."""
    dpo_loss_type: str | Strings | None = None
    """Losses of DPO."""
    dpo_loss_weights: Floats | None = None
    """Weights of the losses of DPO."""
    precompute_ref_log_probs: bool | None = None
    """Compute the reference model's log-probabilities before the run."""
    reward_model: bool | None = None
    """Train a reward model."""
    process_reward_model: bool | None = None
    """Train a reward model of single steps."""
    center_rewards_coefficient: float | None = None
    """Weight of the term that centres rewards at zero."""
    num_labels: Positive | None = None
    """Outputs of a classifier."""
    trl: TrlSection | None = None
    """Options of online reinforcement learning."""
    vllm: VllmSection | None = None
    """Options of a vLLM server."""
    ebft: dict[str, Any] | None = None
    """Options of energy-based fine-tuning."""
