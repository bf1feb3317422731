"""The tokenizer: from a hub id, a folder or a GGUF file; with the tokens the user adds."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from newtune.config.model import ModelSection
from newtune.config.tokenizer import TokenizerSection
from newtune.errors import ModelError
from newtune.hub import HubError
from newtune.logs import logger, notice
from newtune.lookup import did_you_mean
from newtune.model.classes import library_class
from newtune.model.sources import Source, cannot_load, find_source

SINGLE_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
UNLIMITED = int(1e20)
"""A `model_max_length` beyond this is transformers' way to say that none was given."""


def load_tokenizer(tokenizer: TokenizerSection, model: ModelSection) -> PreTrainedTokenizerBase:
    """Return the tokenizer as the run uses it: repaired, with special and added tokens, padding.

    Raises:
        ModelError: it cannot be read; a token name transformers does not know.
        SetupError: a GGUF file without the package that reads it.
    """
    if model.trust_remote_code and model.revision_of_model is None:
        logger.warning(
            "trust_remote_code: code of the repository `%s` will run on this machine, whatever it "
            "holds on that day; pin it with `revision_of_model: <commit>`",
            model.base_model,
        )
    loaded = _read_configured(tokenizer, model)
    special = tokenizer.special_tokens
    add_tokens(
        loaded,
        special={name: getattr(special, name) for name in SINGLE_TOKENS if special is not None},
        additional=(special.additional_special_tokens if special else None) or (),
        tokens=tokenizer.tokens or (),
    )
    choose_padding(loaded)
    return loaded


def new_token_ids(
    tokenizer: TokenizerSection, model: ModelSection, loaded: PreTrainedTokenizerBase
) -> list[int]:
    """Return the ids of the tokens that the configuration added to the tokenizer."""
    if tokenizer.tokens is None and tokenizer.special_tokens is None:
        return []
    before = _read_configured(tokenizer, model).get_vocab()
    return sorted(index for token, index in loaded.get_vocab().items() if token not in before)


def read_tokenizer(
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer_class: str = "AutoTokenizer",
    legacy: bool | None = None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint, a GGUF file's repaired by what the file says."""
    found = find_source(source)
    arguments: dict[str, Any] = {**found.arguments, "trust_remote_code": trust_remote_code}
    if legacy is not None:
        arguments["legacy"] = legacy
    try:
        builder = library_class("tokenizer_type", tokenizer_class, like="Tokenizer")
        tokenizer = builder.from_pretrained(found.name, revision=revision or "main", **arguments)
    except (HubError, OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise cannot_load(source, "tokenizer", error, revision=revision) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"{source}: holds no tokenizer; name one with `tokenizer_config`.")
    if found.gguf_file is not None:
        return repair_gguf_tokenizer(tokenizer, Path(found.name) / found.gguf_file)
    if tokenizer.model_max_length > UNLIMITED:
        tokenizer.model_max_length = _positions_of(found) or tokenizer.model_max_length
    return tokenizer


def add_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    special: Mapping[str, str | None],
    additional: Sequence[str] = (),
    tokens: Sequence[str] = (),
) -> None:
    """Set special tokens (`bos_token`, ...) and add tokens; those the vocabulary has stay as is."""
    given: dict[str, Any] = {name: text for name, text in special.items() if text is not None}
    if given:
        tokenizer.add_special_tokens(given)
    if additional:
        known = set(tokenizer.all_special_tokens)
        tokenizer.add_tokens(
            [AddedToken(t, special=True, normalized=False) for t in additional if t not in known],
            special_tokens=True,
        )
    if tokens:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in tokens])


def choose_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a padding token one it has.

    Any will do: newtune masks by length, never by comparing with the padding token, so that a
    padding token equal to the end token costs no end token its training.

    Raises:
        ModelError: it has no special token at all.
    """
    if tokenizer.pad_token is not None:
        return
    for token in (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token):
        if token is not None:
            tokenizer.pad_token = token
            notice(f"the tokenizer has no padding token; `{token}` fills up rows instead")
            return
    raise ModelError(
        "the tokenizer has no padding, end, unknown or beginning token. Name one of its tokens: "
        "`special_tokens: {eos_token: ...}`."
    )


def repair_gguf_tokenizer(
    tokenizer: PreTrainedTokenizerBase, file: Path
) -> PreTrainedTokenizerBase:
    """Return a GGUF file's tokenizer as the file describes it.

    transformers 5.23 loses how text is split before the merges and the longest input, and adds an
    `<|endoftext|>` that the model may have no embedding for.

    Raises:
        ModelError: the file names a way of splitting that newtune does not know.
    """
    fields = _gguf_fields(file)
    architecture = fields["general.architecture"]
    length = int(fields.get(f"{architecture}.context_length") or UNLIMITED)
    if fields.get("tokenizer.ggml.model") != "gpt2":  # the others split by their own model
        tokenizer.model_max_length = length
        return tokenizer
    name = str(fields.get("tokenizer.ggml.pre", "default"))
    if name not in PRE_TOKENIZERS:
        raise ModelError(
            f"{file}: its tokenizer splits text the `{name}` way, which newtune cannot rebuild; "
            f"{did_you_mean(name, PRE_TOKENIZERS)} Give the original model's tokenizer: "
            "`tokenizer_config: <hub id or folder>`."
        )
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    known = written["model"]["vocab"]
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] in known]
    backend = Tokenizer.from_str(json.dumps(written))
    backend.pre_tokenizer = PRE_TOKENIZERS[name]()
    if name in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    repaired = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        **{token: getattr(tokenizer, token) for token in SINGLE_TOKENS},
    )
    repaired.chat_template = tokenizer.chat_template
    return repaired


def _byte_level(*, use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _plain() -> pre_tokenizers.PreTokenizer:
    return _byte_level(use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _byte_level(use_regex=True)]
    )


def _split_by(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    def build() -> pre_tokenizers.PreTokenizer:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
        return pre_tokenizers.Sequence([split, _byte_level(use_regex=False)])

    return build


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_COMPOSED = frozenset({"qwen2"})
PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "default": _plain,
    "gpt-2": _plain,
    "phi-2": _plain,
    "olmo": _plain,
    "mpt": _plain,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "refact": _single_digits,
    "command-r": _single_digits,
    "codeshell": _single_digits,
    "exaone": _single_digits,
    "llama-bpe": _split_by(_WORDS % r"\p{N}{1,3}"),
    "llama3": _split_by(_WORDS % r"\p{N}{1,3}"),
    "smaug-bpe": _split_by(_WORDS % r"\p{N}{1,3}"),
    "dbrx": _split_by(_WORDS % r"\p{N}{1,3}"),
    "qwen2": _split_by(_WORDS % r"\p{N}"),
    "stablelm2": _split_by(_WORDS % r"\p{N}"),
}
"""A GGUF file's `tokenizer.ggml.pre` → how text is split before byte-pair merges.

The patterns are those of the published tokenizers; each row is one of llama.cpp's names.
"""


def _read_configured(tokenizer: TokenizerSection, model: ModelSection) -> PreTrainedTokenizerBase:
    source = tokenizer.tokenizer_config or model.base_model_config or model.base_model
    return read_tokenizer(
        source,
        revision=model.revision_of_model if source == model.base_model else None,
        trust_remote_code=model.trust_remote_code,
        tokenizer_class=tokenizer.tokenizer_type or "AutoTokenizer",
        legacy=tokenizer.tokenizer_legacy,
    )


def _positions_of(source: Source) -> int | None:
    """Return the positions a local checkpoint's config names; its tokenizer named no length."""
    file = Path(source.name) / "config.json"
    if not source.is_local or not file.is_file():
        return None
    positions = json.loads(file.read_text()).get("max_position_embeddings")
    return int(positions) if positions is not None else None


def _gguf_fields(file: Path) -> dict[str, Any]:
    """Return the file's small fields, not its token lists."""
    from gguf import GGUFReader  # an extra; `find_source` has checked that it is there

    wanted = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    return {
        name: field.contents()
        for name, field in GGUFReader(str(file)).fields.items()
        if name in wanted or name.endswith(".context_length")
    }
