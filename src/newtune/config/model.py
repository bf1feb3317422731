"""Which model is tuned, and what is changed about it while loading."""

from typing import Any

from newtune.config.section import Integers, Section, Strings


class ModelSection(Section):
    """Base model: where it comes from, its class, and overrides of its own configuration."""

    base_model: str = ""
    """Hub id, folder, or `.gguf` file of the model to tune. Required. A GGUF file is dequantised
    while it loads."""
    base_model_config: str | None = None
    """Hub id or folder the model's configuration is read from. Empty: `base_model`."""
    cls_model_config: str | None = None
    """transformers class of the model's configuration."""
    base_model_ignore_patterns: str | Strings | None = None
    """File patterns (`*.pt`) that are not downloaded from the hub. Empty: only what loading needs
    is downloaded."""
    revision_of_model: str | None = None
    """Branch, tag or commit of `base_model` on the hub, for configuration, tokenizer and weights.
    Empty: the repository's main branch."""
    model_type: str | None = None
    """transformers class that loads the weights. Empty: `AutoModelForCausalLM`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. When true, a warning names the repository
    and asks for a pinned `revision_of_model`."""
    is_llama_derived_model: bool | None = None
    """The model belongs to the Llama family. newtune reads the family from the checkpoint: the
    flag is an error where it contradicts, and changes nothing elsewhere (a tokenizer without a
    padding token gets its end token anyway)."""
    is_mistral_derived_model: bool | None = None
    """The model belongs to the Mistral family. Acts (the saved tokenizer pads at the left) where
    the model type is unknown; an error where it contradicts the checkpoint."""
    is_falcon_derived_model: bool | None = None
    """The model belongs to the Falcon family. An error where it contradicts the checkpoint; it
    changes nothing elsewhere."""
    is_qwen_derived_model: bool | None = None
    """The model belongs to the Qwen family. An error where it contradicts the checkpoint; it
    changes nothing elsewhere."""
    overrides_of_model_config: dict[str, Any] | None = None
    """Fields of the model's own configuration to change, such as
    `rope_scaling: {type: linear, factor: 2.0}` (also dynamic, yarn, llama3, longrope; see
    docs/positions.md). Merged, so `rope_theta` survives. A name that the model's configuration
    does not have is an error."""
    overrides_of_model_kwargs: dict[str, Any] | None = None
    """Further arguments of transformers' `from_pretrained`."""
    unfrozen_parameters: Strings | None = None
    """Regular expressions of the parameters that a full fine-tuning trains; all others are
    frozen. A range after one trains rows of a matrix: `^model.embed_tokens.weight$[:32000]`.
    Empty: all parameters are trained."""
    experimental_skip_move_to_device: bool | None = None
    """Keep the model off the device before sharding. newtune loads each weight where it belongs,
    so this changes nothing."""
    low_cpu_mem_usage: bool | None = None
    """Load without a second copy of the weights in memory. newtune always does."""
    reinit_weights: bool | None = None
    """Start from random weights instead of the checkpoint's."""
    use_kernels: bool | None = None
    """Load kernels from the hub for parts of the model."""
    experts_implementation: str | None = None
    """Which implementation computes a mixture of experts."""
    llama4_linearized_experts: bool | None = None
    """Load Llama 4 experts as separate linear layers."""
    fix_untrained_tokens: int | Integers | None = None
    """Ids of tokens whose embeddings were never trained, to be set to the mean of the others."""
    processor_type: str | None = None
    """transformers class that prepares images and audio for a multimodal model."""
    image_size: int | Integers | None = None
    """Size in pixels that images are scaled to: a square's side, or width and height."""
    image_resize_algorithm: str | None = None
    """How images are scaled: bilinear, bicubic or lanczos."""
    freeze_mm_modules: bool | None = None
    """Train the language part of a multimodal model only."""
