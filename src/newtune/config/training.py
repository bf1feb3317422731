"""Batch size, length of the run, optimizer, learning rate."""

from typing import Annotated, Any

from pydantic import Field

from newtune.config.section import (
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Share,
    ShareBelowOne,
    Strings,
)


class LearningRateGroup(Section):
    """A learning rate of its own for some modules."""

    name: str = ""
    """Name of the group."""
    modules: Strings = ()
    """Modules of the group."""
    lr: PositiveFloat | None = None
    """Learning rate of the group."""


class TrainingSection(Section):
    """How the run proceeds: batches, epochs, optimizer, schedule."""

    micro_batch_size: Positive | None = None
    """Rows (packs when packing) per device and forward pass. Two of `micro_batch_size`,
    `gradient_accumulation_steps` and `batch_size` are needed."""
    gradient_accumulation_steps: Positive | None = None
    """Forward passes per optimizer step and process. Empty: derived from `batch_size`."""
    batch_size: Positive | None = None
    """Rows per optimizer step over all processes; the third number is then derived."""
    auto_find_batch_size: bool | None = None
    """Try smaller batches when memory runs out."""
    num_epochs: PositiveFloat = 1.0
    """Passes over the data; may be a fraction. `max_steps` goes before it."""
    max_steps: Positive | None = None
    """Optimizer steps of the run, whatever `num_epochs` says."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Required."""
    embedding_lr: PositiveFloat | None = None
    """Learning rate of the embeddings. Empty: `learning_rate`."""
    embedding_lr_scale: PositiveFloat | None = None
    """Learning rate of the embeddings as a multiple of `learning_rate`."""
    lr_groups: Annotated[tuple[LearningRateGroup, ...], Field(strict=False)] = ()
    """Learning rates of their own for groups of modules."""
    optimizer: str = "adamw_torch_fused"
    """Optimizer: `adamw_torch_fused`, `adamw_torch`, `adamw_bnb_8bit`, `paged_adamw_8bit`,
    `adafactor`, `lion_8bit`, `sgd`, ..."""
    optim_args: str | dict[str, Any] | None = None
    """Further arguments of the optimizer: a mapping, or `key=value,key=value`."""
    optim_target_modules: str | Strings | None = None
    """Modules of optimizers that treat some apart (GaLore, APOLLO)."""
    weight_decay: NotNegativeFloat = 0.0
    """Decoupled weight decay; biases and norms have none."""
    adam_beta1: ShareBelowOne = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: ShareBelowOne = 0.999
    """Decay of Adam's second moment."""
    adam_beta3: ShareBelowOne | None = None
    """Third decay of optimizers that have one (CAME)."""
    adam_epsilon: PositiveFloat = 1e-8
    """Adam's term against division by zero."""
    adam_epsilon2: PositiveFloat | None = None
    """Second such term, of optimizers that have one (CAME)."""
    max_grad_norm: NotNegativeFloat = 1.0
    """Gradients longer than this are scaled down to it. 0: never."""
    lr_scheduler: str = "cosine"
    """Learning rate over the run: `cosine`, `linear`, `constant`, `constant_with_warmup`, ..."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Further arguments of the schedule."""
    cosine_min_lr_ratio: Share | None = None
    """Floor of the cosine, as a share of the peak."""
    cosine_constant_lr_ratio: Share | None = None
    """Share of the run after which the floor is held. Needs `cosine_min_lr_ratio`."""
    lr_div_factor: PositiveFloat | None = None
    """Peak over first learning rate of `one_cycle`."""
    lr_quadratic_warmup: bool = False
    """The warm-up grows with the square of the step."""
    warmup_steps: NotNegative | None = None
    """Steps until the learning rate is at its peak. Excludes `warmup_ratio`. With neither: 3 % of
    the run, at most 100 steps."""
    warmup_ratio: Share | None = None
    """The same as a share of the run. Excludes `warmup_steps`."""
    logging_steps: Positive | None = None
    """Metrics are logged every so many steps. Empty: about 200 times over the run, at most 10 steps
    apart."""
    include_tokens_per_second: bool | None = None
    """Report tokens per second. newtune always does."""
    include_tkps: bool | None = None
    """Report tokens per second. newtune always does."""
    seed: NotNegative = 42
    """Seed of everything random: the same seed gives the same run."""
    neftune_noise_alpha: PositiveFloat | None = None
    """Strength of the noise added to the embeddings in training (NEFTune)."""
    loss_watchdog_threshold: PositiveFloat | None = None
    """Stop when the loss is above this for `loss_watchdog_patience` steps."""
    loss_watchdog_patience: Positive = 3
    """Steps in a row that `loss_watchdog_threshold` tolerates, less one."""
    torchdistx_path: str | None = None
    """Where torchdistx lies. newtune does not use it."""
    lisa_n_layers: Positive | None = None
    """LISA: how many layers are trained at a time."""
    lisa_step_interval: Positive | None = None
    """LISA: steps between two choices of layers."""
    lisa_layers_attribute: str | None = None
    """LISA: where the layers are."""
    jagged_restart_steps: Positive | None = None
    """Steps between two restarts of the learning rate: it goes on along `lr_scheduler`, dented."""
    jagged_restart_warmup_steps: NotNegative | None = None
    """Warm-up after such a restart, in steps."""
    jagged_restart_anneal_steps: NotNegative | None = None
    """Cool-down before such a restart, in steps."""
    dion_lr: PositiveFloat | None = None
    """Dion: learning rate."""
    dion_momentum: float | None = None
    """Dion: momentum."""
    dion_rank_fraction: PositiveFloat | None = None
    """Dion: rank as a share of the dimension."""
    dion_rank_multiple_of: Positive | None = None
    """Dion: round the rank up to a multiple of this."""
    grokfast_alpha: float | None = None
    """Grokfast: decay of the slow gradients."""
    grokfast_lamb: float | None = None
    """Grokfast: weight of the slow gradients."""
    use_eaft: bool | None = None
    """Weight tokens by the entropy of the prediction (EAFT)."""
    eaft_alpha: float | None = None
    """EAFT: exponent."""
    eaft_k: Positive | None = None
    """EAFT: how many logits estimate the entropy."""
    kd_trainer: bool | None = None
    """Distil a teacher."""
    kd_ce_alpha: float | None = None
    """Distillation: weight of the usual loss."""
    kd_alpha: float | None = None
    """Distillation: weight of the teacher's distribution."""
    kd_temperature: float | None = None
    """Distillation: temperature."""
    spectrum_top_fraction: float | None = None
    """Spectrum: share of the layers that is trained."""
    spectrum_model_name: str | None = None
    """Spectrum: model whose layers were measured."""
    llmcompressor: dict[str, Any] | None = None
    """LLM Compressor: recipe of a sparse fine-tuning."""
    diffusion: dict[str, Any] | None = None
    """Train a diffusion language model."""
