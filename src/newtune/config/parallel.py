"""Several processes: sharding, replication, splitting sequences and layers."""

from typing import Any, Literal

from newtune.config.section import NotNegative, Positive, PositiveFloat, Section, Strings

StateDict = Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT", "LOCAL_STATE_DICT"]
IN_PARTS = ("SHARDED_STATE_DICT", "LOCAL_STATE_DICT")
"""The second is FSDP1's, which only as many processes could read."""


class FsdpSection(Section):
    """Options of fully sharded data parallelism (FSDP2); the `fsdp_` prefix may be left out."""

    activation_checkpointing: bool | None = None
    """Recompute activations of wrapped layers in the backward pass."""
    offload_params: bool | None = None
    """Keep sharded parameters on the CPU."""
    cpu_ram_efficient_loading: bool | None = None
    """Only the first process reads the weights, and hands them out piece by piece."""
    cpu_offload_pin_memory: bool | None = None
    """Page-locked memory for offloaded parameters."""
    state_dict_type: StateDict | None = None
    """Form of the checkpoints during the run: whole, or in parts (SHARDED_STATE_DICT) that
    `newtune merge-sharded-fsdp-weights` puts together."""
    final_state_dict_type: StateDict | None = None
    """Form of the final weights. newtune writes whole ones."""
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"] | None = None
    """What is sharded as one piece: decoder layers, or modules of `min_num_params`."""
    min_num_params: Positive | None = None
    """Least parameters of a piece under `SIZE_BASED_WRAP`."""
    transformer_layer_cls_to_wrap: str | Strings | None = None
    """Class of the decoder layers. Empty: read off the model."""
    reshard_after_forward: bool | str | None = None
    """Drop the gathered parameters between forward and backward: less memory."""
    sharding_strategy: str | int | None = None
    """FSDP1's name of the sharding: FULL_SHARD, SHARD_GRAD_OP, HYBRID_SHARD, NO_SHARD."""
    mixed_precision_policy: str | dict[str, Any] | None = None
    """Precision of the sharded computation."""
    limit_all_gathers: bool | None = None
    """FSDP1. FSDP2 limits them by itself."""
    use_orig_params: bool | None = None
    """FSDP1. FSDP2 always keeps the original parameters."""
    sync_module_states: bool | None = None
    """FSDP1. FSDP2 hands the weights out while loading."""
    backward_prefetch: str | None = None
    """FSDP1. FSDP2 prefetches by itself."""
    forward_prefetch: bool | str | None = None
    """FSDP1. FSDP2 prefetches by itself."""


class ParallelSection(Section):
    """Processes, sharding, launchers."""

    fsdp: Strings | None = None
    """The old list form of FSDP: `full_shard`, `shard_grad_op`, `hybrid_shard`, `no_shard`,
    `auto_wrap`, `offload`."""
    fsdp_version: Literal[1, 2] = 2
    """newtune runs FSDP2; 1 is translated."""
    fsdp_config: FsdpSection | None = None
    """Options of FSDP."""
    deepspeed: str | dict[str, Any] | None = None
    """DeepSpeed configuration: a mapping, or a JSON file looked for beside the configuration, then
    in the working directory, then among those that newtune ships. Excludes FSDP."""
    deepcompile: bool | None = None
    """DeepSpeed's compiler."""
    dp_shard_size: Positive | None = None
    """Processes that share one copy of the model (FSDP2)."""
    dp_replicate_size: Positive | None = None
    """Copies of the model; with `dp_shard_size` each is shared (HSDP)."""
    context_parallel_size: Positive | None = None
    """Neighbouring processes that share each sequence: every one computes a part of its tokens."""
    tensor_parallel_size: Positive | None = None
    """Neighbouring processes that share each layer and compute the same rows."""
    expert_parallel_size: Positive | None = None
    """Processes that share the experts of a mixture."""
    heads_k_stride: Positive | None = None
    """Ring attention's key heads communicated at a time. newtune exchanges all at once."""
    ring_attn_func: str | None = None
    """Which ring attention shares a sequence."""
    ddp: bool | None = None
    """Data parallelism."""
    ddp_timeout: Positive | None = None
    """Seconds until a process that waits for the others gives up."""
    hang_timeout_seconds: NotNegative | None = None
    """Of several processes: when one dies or hangs, the others end within so many seconds and name
    it, its machine, and where it stood. 0: they wait until `ddp_timeout`. Empty: 600."""
    ddp_backend: str | None = None
    """How processes talk: nccl, gloo, ..."""
    ddp_bucket_cap_mb: PositiveFloat | None = None
    """Megabytes of gradients that are exchanged at a time."""
    ddp_broadcast_buffers: bool | None = None
    """Keep buffers equal over the processes."""
    ddp_find_unused_parameters: bool | None = None
    """Look for parameters without a gradient."""
    use_ray: bool = False
    """Start the processes by Ray: on the cluster at RAY_ADDRESS, or on a Ray of this machine."""
    ray_run_name: str | None = None
    """Name of the run in Ray, and of the folder of its notes in `output_dir/ray`."""
    ray_num_workers: Positive = 1
    """Processes that Ray starts."""
    resources_per_worker: dict[str, Any] | None = None
    """What each process needs of the cluster: `{CPU: 4, GPU: 1}`. Empty: one CPU, and one GPU where
    there are enough."""
    local_rank: int | None = None
    """Set by launchers in the environment; in a file it changes nothing."""
    world_size: int | None = None
    """Set by launchers in the environment; in a file it changes nothing."""
    device: str | None = None
    """Device of the run; chosen by the machine and the launcher."""
