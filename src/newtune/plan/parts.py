"""What a plan consists of: frozen values for the engines, which never read the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from newtune.plan.facts import DataFacts, Dtype, ModelFacts
from newtune.plan.sharing import ParallelPlan

Method = Literal["bitsandbytes", "gptq", "awq", "torchao"]
"""Whose layers hold a quantised base while an adapter trains on it."""


@dataclass(frozen=True)
class PrecisionPlan:
    """Which number formats are used where."""

    frozen_weights: Dtype
    trained_weights: Dtype
    autocast: Dtype | None
    """Forward and backward run under autocast to this; None = no autocast."""
    tf32: bool | None


@dataclass(frozen=True)
class QuantizationPlan:
    """How the frozen base is stored in few bits."""

    bits: int
    options: Mapping[str, Any]
    """bitsandbytes: arguments of transformers' BitsAndBytesConfig besides the number of bits.
    Others: what the checkpoint says of how it is packed."""
    stored: bool = False
    """The checkpoint is stored so already."""
    method: Method = "bitsandbytes"

    @property
    def rounds_inputs(self) -> bool:
        """Tell whether its layers round what goes into them as well, token by token."""
        return self.method == "bitsandbytes" and self.bits == 8


@dataclass(frozen=True)
class PlacementPlan:
    """Which part of the model lies on which device, where one process spreads it."""

    devices: Mapping[str, int | str]
    """Module → a GPU's number, `cpu` or `disk`."""
    memory_bytes: Mapping[int | str, int] = field(default_factory=dict)
    """What each device holds of it, with gradients and optimizer state where it is trained."""

    @property
    def uses_disk(self) -> bool:
        """Tell whether a part stays on the disk."""
        return "disk" in self.devices.values()


@dataclass(frozen=True)
class ModelPlan:
    """How the base model is loaded."""

    source: str
    """Hub id, folder, or path of a `.gguf` file."""
    config_source: str
    revision: str | None
    model_class: str
    trust_remote_code: bool
    ignore_patterns: tuple[str, ...]
    config_overrides: Mapping[str, Any]
    load_kwargs: Mapping[str, Any]
    attention: str
    """The `attn_implementation` given to transformers."""
    precision: PrecisionPlan
    device: str
    gradient_checkpointing: bool
    gradient_checkpointing_kwargs: Mapping[str, Any]
    embedding_multiple: int | None
    """Grow the embeddings to a multiple of this (32); None = just as many rows as tokens."""
    unfrozen_parameters: tuple[str, ...] = ()
    """Regexes of the parameters a full fine-tuning trains, maybe with rows; empty = all."""
    quantization: QuantizationPlan | None = None
    unpacks: bool = False
    """The checkpoint is stored quantised, and loading makes ordinary weights of it."""
    placement: PlacementPlan | None = None
    """Where the layers lie; None = all of them on `device`."""
    packed: bool = False
    """A sequence may hold several examples, which must not see each other."""


@dataclass(frozen=True)
class AdapterPlan:
    """How the adapter is made; None in the plan means full fine-tuning."""

    kind: Literal["lora"]
    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...] | str
    """Names, or one regex. Already resolved: `lora_target_linear` has become the names."""
    layers: tuple[int, ...] | None
    modules_to_save: tuple[str, ...]
    fan_in_fan_out: bool
    use_rslora: bool
    use_dora: bool
    init: bool | str
    continue_from: str | None
    """Folder or hub id of an adapter to go on from (`lora_model_dir`)."""
    target_parameters: tuple[str, ...] = ()
    further_arguments: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of PEFT's LoraConfig (`layers_pattern`, ...)."""
    read_on_cpu: bool = False
    """Stored weights are read into the CPU's memory first, not into a GPU's."""
    repairs_quantization: bool = False
    """LoftQ: it starts from what quantising the base took away."""


@dataclass(frozen=True)
class StepPlan:
    """How packs become steps.

    Every step has the same number of micro-batches: the last step of an epoch is filled up with
    micro-batches that hold no trained token.
    """

    rows_per_device: int
    accumulation: int
    world_size: int
    epochs: float
    steps_in_epoch: tuple[int, ...]
    """Steps of each epoch that the run enters, the last cut off where the run ends."""
    seed: int

    @property
    def rows_per_step(self) -> int:
        """Sequences per optimizer update over all processes."""
        return self.rows_per_device * self.accumulation * self.world_size

    @property
    def total_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return sum(self.steps_in_epoch)


@dataclass(frozen=True)
class LoraPlusPlan:
    """LoRA+: learning rates of their own for B matrices and for adapters of embeddings."""

    ratio: float
    """Rate of the B matrices (and of vectors: DoRA's magnitudes, biases) over `learning_rate`."""
    embedding_learning_rate: float
    """Rate of both matrices of a LoRA on an embedding."""


@dataclass(frozen=True)
class OptimizerPlan:
    """The optimizer and its groups."""

    name: str
    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    arguments: Mapping[str, Any]
    """`optim_args`."""
    max_grad_norm: float
    """0 = no clipping."""
    embedding_learning_rate: float | None = None
    target_modules: tuple[str, ...] | str | None = None
    """`optim_target_modules`: what GaLore and APOLLO project; None = all linear layers."""
    lora_plus: LoraPlusPlan | None = None


@dataclass(frozen=True)
class SchedulePlan:
    """The learning rate as a function of the step."""

    name: str
    warmup_steps: int
    quadratic_warmup: bool
    min_ratio: float | None
    """`cosine_min_lr_ratio`: the floor as a share of the peak."""
    constant_ratio: float | None
    """`cosine_constant_lr_ratio`: share of the run after which the floor is held."""
    arguments: Mapping[str, Any]
    restarts: "RestartPlan | None" = None


@dataclass(frozen=True)
class RestartPlan:
    """Dents in the learning rate: down before every restart, up after it."""

    every_steps: int
    warmup_steps: int
    anneal_steps: int


@dataclass(frozen=True)
class ReloraPlan:
    """When a LoRA starts anew beside what it has learned, and what the optimizer forgets then."""

    every_steps: int
    prune_method: Literal["magnitude", "random", "reset"]
    prune_ratio: float
    """Share of the values that are set to zero; `reset` drops all of the state."""


@dataclass(frozen=True)
class EvaluationPlan:
    """When and how the held-out data is evaluated."""

    at_steps: frozenset[int]
    """Steps after which the loss on the held-out data is computed; empty = never."""
    rows_per_device: int
    generate: bool
    """`eval_generate`: greedy answers on held-out rows, scored by exact match."""
    max_new_tokens: int
    generate_examples: int | None
    """How many held-out examples are answered; None = all."""
    early_stopping_patience: int | None
    early_stopping_threshold: float
    best_metric: str
    """Name in the metrics, `eval_loss` by default."""
    greater_is_better: bool
    generate_at_steps: frozenset[int] | None = None
    """Steps after which answers are generated; None = before the first, with every evaluation of
    the loss, and after the last."""


@dataclass(frozen=True)
class SavePlan:
    """When checkpoints are written and which are kept."""

    at_steps: frozenset[int]
    on_best: bool
    keep: int | None
    weights_only: bool
    """`save_only_model`: no optimizer state; such a checkpoint cannot be resumed."""
    load_best_at_end: bool


@dataclass(frozen=True)
class TrackerPlan:
    """The experiment trackers asked for, none by default."""

    names: tuple[str, ...]
    """Of tensorboard, wandb, mlflow, comet, trackio."""
    run_name: str | None
    options: Mapping[str, Mapping[str, Any]]
    """Per tracker its own keys without the prefix: `wandb: {project: ...}`."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything the training loop needs."""

    steps: StepPlan
    optimizer: OptimizerPlan
    schedule: SchedulePlan
    evaluation: EvaluationPlan
    save: SavePlan
    trackers: TrackerPlan
    logging_steps: int
    neftune_noise_alpha: float | None
    loss_watchdog_threshold: float | None
    loss_watchdog_patience: int
    dataloader_workers: int
    dataloader_pin_memory: bool
    dataloader_prefetch_factor: int | None
    flatten: bool = False
    """The sequences of a micro-batch are laid end to end in one row, without padding."""
    relora: ReloraPlan | None = None
    parallel: ParallelPlan = field(default_factory=ParallelPlan)


@dataclass(frozen=True)
class HubPlan:
    """Where, and when, the result is uploaded."""

    model_id: str
    private: bool = False
    revision: str | None = None
    """Branch; None = the main one."""
    strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "end"
    always_push: bool = False
    """Every checkpoint is uploaded, also while an earlier upload goes on."""


@dataclass(frozen=True)
class OutputPlan:
    """Where results go."""

    folder: Path
    merged_dtype: Dtype | None = None
    """None = the base checkpoint's own."""
    hub: HubPlan | None = None
    dataset_hub: HubPlan | None = None
    """Where the prepared data is uploaded before the training begins."""


@dataclass(frozen=True)
class Plan:
    """What was decided, and why, before anything heavy is loaded."""

    model: ModelPlan
    adapter: AdapterPlan | None
    training: TrainingPlan
    output: OutputPlan
    model_facts: ModelFacts
    data_facts: DataFacts
    trainable_parameters: int
    tokens_per_step: float
    """Tokens (trained or not, no padding) per optimizer update, on average."""
    notices: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Dotted name of a value (`training.steps.accumulation`) → why it is what it is."""
