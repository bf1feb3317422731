"""Which tokenizer is used, and the tokens added to it."""

from newtune.config.section import Section, Strings


class SpecialTokensSection(Section):
    """Special tokens to set or replace; a token the tokenizer lacks is added."""

    bos_token: str | None = None
    """Token that begins a text."""
    eos_token: str | None = None
    """Token that ends a text; generation stops at it."""
    pad_token: str | None = None
    """Token that fills up rows of unequal length; never attended to, never trained."""
    unk_token: str | None = None
    """Token that stands for what the vocabulary cannot express."""
    additional_special_tokens: Strings | None = None
    """Further tokens that are never split and that decoding may skip."""


class TokenizerSection(Section):
    """Tokenizer: source, class, special and added tokens."""

    tokenizer_config: str | None = None
    """Hub id or folder of the tokenizer. Empty: `base_model_config`, else `base_model`."""
    tokenizer_type: str | None = None
    """transformers class of the tokenizer. Empty: `AutoTokenizer`."""
    tokenizer_use_fast: bool | None = None
    """transformers 5 has fast tokenizers only: true changes nothing, false is refused."""
    tokenizer_legacy: bool | None = None
    """Passed to the tokenizer as `legacy`, where its class still knows it."""
    tokenizer_use_mistral_common: bool | None = None
    """Use the mistral-common package instead of the checkpoint's tokenizer files."""
    tokenizer_save_jinja_files: bool | None = None
    """Save the chat template as a file of its own, as transformers does by default; false is
    refused."""
    resize_token_embeddings_to_32x: bool = False
    """Grow the embeddings to a multiple of 32 rows, for speed. They never shrink."""
    shrink_embeddings: bool | None = None
    """Cut embedding rows that the tokenizer does not use."""
    mean_resizing_embeddings: bool | None = None
    """Draw new embedding rows around the mean of the old ones."""
    embeddings_skip_upcast: bool | None = None
    """Keep the embeddings in 16 bit with an adapter. newtune keeps all frozen weights in the
    precision of the run, so this changes nothing."""
    special_tokens: SpecialTokensSection | None = None
    """Special tokens to set: `bos_token`, `eos_token`, `pad_token`, `unk_token`,
    `additional_special_tokens`."""
    tokens: Strings | None = None
    """Tokens to add to the vocabulary. With an adapter newtune trains their embedding rows, unless
    `lora_modules_to_save` names the embeddings."""
    added_tokens_overrides: dict[int, str] | None = None
    """Id → new text, for reserved tokens of the tokenizer."""
