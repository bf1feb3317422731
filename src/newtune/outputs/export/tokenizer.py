"""A tokenizer in GGUF's header: its kind, tokens with scores and types, merges, special tokens."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from newtune.errors import ExportError
from newtune.outputs.conversation import turn_end_id

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
PREFIX = "▁"
PREFERRED = ("llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35")
"""Of several names for one way to split, the one that is written."""

Entry = int | float | str | bool | list[str] | list[int] | list[float]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, what each one is, and what orders them."""

    kind: str
    """`gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `t5` (SentencePiece unigram)."""
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    split: str | None
    """How text is cut before merging; byte-level BPE alone has it."""


def tokenizer_metadata(
    tokenizer: PreTrainedTokenizerBase, vocabulary_rows: int
) -> Iterator[tuple[str, Entry]]:
    """Yield every `tokenizer.` key; tokens are filled up to the rows of the embeddings.

    Raises:
        ExportError: a tokenizer of a kind that GGUF has no word for.
    """
    vocabulary = read_vocabulary(tokenizer, vocabulary_rows)
    yield "ggml.model", vocabulary.kind
    if vocabulary.split is not None:
        yield "ggml.pre", vocabulary.split
    yield "ggml.tokens", vocabulary.tokens
    if vocabulary.scores is not None:
        yield "ggml.scores", vocabulary.scores
    yield "ggml.token_type", vocabulary.types
    if vocabulary.merges is not None:
        yield "ggml.merges", vocabulary.merges
    if vocabulary.kind != "gpt2":
        yield "ggml.add_space_prefix", _puts_space_first(tokenizer)
    yield from _special_tokens(tokenizer)
    if isinstance(tokenizer.chat_template, str):
        yield "chat_template", tokenizer.chat_template


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Return the vocabulary, with unused tokens up to `rows`.

    Raises:
        ExportError: a kind that GGUF has no word for; more tokens than rows.
    """
    backend: Any = tokenizer.backend_tokenizer
    content = json.loads(backend.to_str())
    model = content["model"]
    tokens, types = _tokens(tokenizer, rows, pieces=not _is_byte_level(content))
    if model["type"] == "Unigram":
        scores = [float(score) for _, score in model["vocab"]]
        scores += [0.0] * (len(tokens) - len(scores))
        return Vocabulary("t5", tokens, types, scores, None, None)
    if model["type"] != "BPE":
        raise ExportError(
            f"a tokenizer of kind {model['type']} cannot be written as GGUF: byte-level BPE, "
            "SentencePiece BPE and SentencePiece unigram can."
        )
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    if _is_byte_level(content):
        return Vocabulary("gpt2", tokens, types, None, merges, split_name(content))
    return Vocabulary("llama", tokens, types, _scores(tokens, merges), None, None)


def split_name(content: Mapping[str, Any]) -> str:
    """Return GGUF's name for how a byte-level tokenizer cuts text before it merges.

    Raises:
        ExportError: a way that has no name here.
    """
    steps = _steps(content["pre_tokenizer"])
    kinds = [step["type"] for step in steps]
    pattern = next((s["pattern"].get("Regex") for s in steps if s["type"] == "Split"), None)
    if pattern is None:
        if any(step["type"] == "Digits" and step["individual_digits"] for step in steps):
            return "smollm"
        if kinds == ["ByteLevel"]:
            return "gpt-2"
    names = [name for name, split in GGUF_PRE_TOKENIZER_SPLITS.items() if split == pattern]
    for name in (*PREFERRED, *names):
        if name in names:
            return name
    raise ExportError(
        f"this tokenizer cuts text in a way that GGUF has no name for here: "
        f"{pattern or ' + '.join(kinds)}. Known: gpt-2, smollm, {', '.join(PREFERRED)}."
    )


def _tokens(
    tokenizer: PreTrainedTokenizerBase, rows: int, *, pieces: bool
) -> tuple[list[str], list[int]]:
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= rows:
        raise ExportError(
            f"the tokenizer has tokens up to {max(by_id)}, but the model only {rows} rows of "
            "embeddings: the two do not belong together"
        )
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    tokens, types = [], []
    for index in range(rows):
        token = by_id.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        types.append(int(_token_type(index, token, tokenizer, special, added, pieces=pieces)))
    return tokens, types


def _token_type(
    index: int,
    token: str | None,
    tokenizer: PreTrainedTokenizerBase,
    special: set[int],
    added: Mapping[int, Any],
    *,
    pieces: bool,
) -> TokenType:
    """Return what a token is; only in SentencePiece's vocabularies one stands for the unknown."""
    if token is None:
        return TokenType.UNUSED
    if BYTE.fullmatch(token):
        return TokenType.BYTE
    if pieces and index == tokenizer.unk_token_id:
        return TokenType.UNKNOWN
    if index in special or (index in added and added[index].special):
        return TokenType.CONTROL
    if index in added:
        return TokenType.USER_DEFINED
    return TokenType.NORMAL


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return scores that make SentencePiece merge in the order of `merges`: the best goes first."""
    rank: dict[str, int] = {}
    for place, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        rank.setdefault(left + right, place)
    last = -float(len(merges))
    return [-float(rank[token]) if token in rank else last for token in tokens]


def _is_byte_level(content: Mapping[str, Any]) -> bool:
    steps = (*_steps(content["pre_tokenizer"]), *_steps(content["decoder"]))
    return any(step["type"] == "ByteLevel" for step in steps)


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return what a sequence of steps is made of, or the one step."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        inner = part.get("pretokenizers") or part.get("normalizers") or part.get("decoders") or []
        return [step for entry in inner for step in _steps(entry)]
    return [part]


def _puts_space_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend: Any = tokenizer.backend_tokenizer
    content = json.loads(backend.to_str())
    for step in (*_steps(content["normalizer"]), *_steps(content["pre_tokenizer"])):
        if step["type"] == "Prepend" and step["prepend"] == PREFIX:
            return True
        if step["type"] == "Metaspace" and step.get("prepend_scheme") != "never":
            return True
    return False


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Entry]]:
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    for name, token in ids.items():
        if token is not None:
            yield f"ggml.{name}_token_id", int(token)
    turn_end = turn_end_id(tokenizer)
    if turn_end is not None and turn_end != tokenizer.eos_token_id:
        yield "ggml.eot_token_id", turn_end
    encoded = tokenizer("a")["input_ids"]
    yield "ggml.add_bos_token", bool(encoded) and encoded[0] == tokenizer.bos_token_id
    yield "ggml.add_eos_token", bool(encoded) and encoded[-1] == tokenizer.eos_token_id
