"""What a plan is made from: facts of the model and of the data, as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint's config alone tells; counted on the meta device, no weights read."""

    model_type: str
    architecture: str
    parameters: int
    layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    """Longest sequence the positions were trained for, RoPE scaling included; None if unlimited."""
    checkpoint_dtype: Dtype | None
    linear_modules: Mapping[str, tuple[int, int]]
    """Dotted name → (in_features, out_features) of every linear layer, the output head included."""
    head_name: str
    """Dotted name of the output head (`lm_head`)."""
    parameter_shapes: Mapping[str, tuple[int, ...]]
    tied_embeddings: bool
    stored_quantized: Mapping[str, Any] | None = None
    """The checkpoint's own `quantization_config`; None for one stored plainly."""
    layer_kinds: frozenset[str] = frozenset()
    """transformers' names of the kinds of its layers (`full_attention`); empty = not told."""
    stateful: bool = False
    """Its class says that it carries a state from token to token."""
    takes_positions: bool = True
    """Its forward is told where in its example each token stands."""
    attentions: frozenset[str] = frozenset({"sdpa", "flash_attention", "flex_attention", "own"})
    """What its code can compute attention with beside eager; `own`: any registered function."""
    tensor_plan: Mapping[str, str] = field(default_factory=dict)
    """Pattern of module names → how tensor parallelism splits it, by transformers."""
    heads: int | None = None
    key_heads: int | None = None
    """Attention heads, and those of keys and values; None where the config does not name them."""
    rotary_kinds: frozenset[str] = frozenset()
    """transformers' names of how its rotary embeddings are scaled (`linear`); empty = has none."""
    routers: Mapping[str, bool] = field(default_factory=dict)
    """Dotted name of each layer that chooses experts → whether a LoRA can be put beside it."""
    taken_for_experts: frozenset[str] = frozenset()
    """Linear layers in whose place PEFT would adapt the experts, by their names."""
    stored_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter → its names in a checkpoint's files, where they are others; `*` is any number."""


ENDLESS = 1 << 62
"""More sequences than any run has: an epoch of streamed data never ends."""


@dataclass(frozen=True)
class DataFacts:
    """What the prepared data tells the plan; values only."""

    train_examples: int
    eval_examples: int
    tokens: int
    trained_tokens: int
    eval_tokens: int
    packs_in_epoch: Callable[[int], int]
    """Sequences (packs, or examples when not packed) in epoch e, exact; epochs count from 0."""
    packing_efficiency: float | None
    """Share of the positions of epoch 0's packs that hold a token; None when not packed."""
    streamed: bool = False
    """Read while the run goes on: examples and tokens are unknown and stand at 0."""
    sequence_tokens: float | None = None
    """Streamed data: tokens of a sequence, as far as the first rows tell."""
