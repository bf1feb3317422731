"""LoRA and its relatives: which layers get an adapter, and of what kind."""

from typing import Annotated, Literal

from pydantic import Field

from newtune.config.section import (
    Integers,
    NotNegative,
    Positive,
    PositiveFloat,
    Section,
    ShareBelowOne,
    Strings,
)


class LoftqSection(Section):
    """LoftQ: start from the adapter that best repairs the quantisation."""

    loftq_bits: Positive | None = None
    """Bits of the quantised base: 4 with `adapter: qlora`."""
    loftq_iter: Positive | None = None
    """Alternating steps. One: the base stays the checkpoint's, quantised."""


class PeftSection(Section):
    """Further PEFT options."""

    loftq_config: LoftqSection | None = None
    """LoftQ: an adapter on a quantised base starts by repairing it."""


class AdapterSection(Section):
    """Adapter: kind, size, targets."""

    adapter: Literal["lora", "qlora"] | None = None
    """`lora`, or `qlora` (LoRA over a 4-bit base). Empty: full fine-tuning."""
    lora_model_dir: str | None = None
    """Folder or hub id of an adapter to go on from. It brings its own rank, targets and kind."""
    lora_r: Positive = 8
    """Rank of the adapter's matrices."""
    lora_alpha: PositiveFloat = 16
    """Scale of the adapter: its output is multiplied by `lora_alpha / lora_r`."""
    lora_dropout: ShareBelowOne = 0.05
    """Share of the adapter's inputs that is zeroed at random during training."""
    lora_target_modules: str | Strings | None = None
    """Names of the layers that get an adapter (`[q_proj, v_proj]`), or one regular expression that
    matches whole module names."""
    lora_target_linear: bool = False
    """Every linear layer but the output head gets an adapter."""
    lora_target_parameters: str | Strings | None = None
    """Names of bare parameters (experts of a mixture) that get an adapter."""
    peft_layers_to_transform: int | Integers | None = None
    """Indices of the decoder layers that get an adapter. Empty: all."""
    peft_layers_pattern: str | Strings | None = None
    """Name of the module list that `peft_layers_to_transform` counts in."""
    lora_modules_to_save: Strings | None = None
    """Modules trained in full and saved with the adapter, such as `embed_tokens`, `lm_head`."""
    lora_fan_in_fan_out: bool = False
    """The target layers store their weights as (in, out), as GPT-2 does."""
    peft_use_dora: bool = False
    """Learn the weights' magnitude apart from their direction (DoRA)."""
    peft_use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(lora_r)` (rank-stabilised LoRA)."""
    peft_init_lora_weights: bool | str | None = None
    """How the adapter starts: true (PEFT's default: no change of the model), false (random),
    `gaussian`, `orthogonal`, `pissa`, `pissa_niter_4` or `olora` (from the main part of the base's
    weights), `eva` (from the training data; every layer keeps `lora_r`)."""
    peft_layer_replication: Annotated[tuple[Integers, ...], Field(strict=False)] | None = None
    """Ranges of layers to repeat, sharing their weights."""
    peft_trainable_token_indices: Integers | dict[str, Integers] | None = None
    """Token ids whose embedding rows are trained along with the adapter."""
    peft_ensure_weight_tying: bool | None = None
    """Keep tied weights tied when both are adapted or saved."""
    peft_autocast_adapter_dtype: bool | None = None
    """Hold the adapter in float32. newtune always does, unless `bfloat16` or `float16` is given."""
    peft: PeftSection | None = None
    """Further PEFT options (`loftq_config`)."""
    loraplus_lr_ratio: PositiveFloat | None = None
    """LoRA+: learning rate of the B matrices over that of the A matrices, which is
    `learning_rate`; 16 is usual. DoRA's magnitudes and other vectors go with B."""
    loraplus_lr_embedding: PositiveFloat = 1e-6
    """LoRA+: learning rate of the adapter on an embedding."""
    relora: bool | None = None
    """ReLoRA: freeze what was learned every `relora_steps` and start the adapter anew beside it,
    so that the sum reaches a higher rank. Given steps switch it on."""
    relora_steps: Positive | None = None
    """Steps between two restarts of ReLoRA."""
    relora_warmup_steps: NotNegative | None = None
    """Warm-up after a restart of ReLoRA, in steps."""
    relora_anneal_steps: NotNegative | None = None
    """Cool-down before a restart of ReLoRA, in steps."""
    relora_prune_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of the optimizer's state that a restart of ReLoRA sets to zero."""
    relora_prune_method: Literal["magnitude", "random", "reset"] | None = None
    """How a restart of ReLoRA chooses: the smallest values (`magnitude`), random ones, or the whole
    state (`reset`). Empty: `magnitude`, but `reset` where the optimizer's state is in 8 bits."""
    relora_cpu_offload: bool | None = None
    """Where ReLoRA merges. newtune keeps what was learned beside the base and merges at the end."""
    qlora_sharded_model_loading: bool | None = None
    """Load a 4-bit base in shards."""
    merge_lora: bool | None = None
    """Set by older merge commands. `newtune merge` is a command of its own."""
    merge_method: str | None = None
    """How much of the base is held in memory while merging."""
