"""Tiny random models of several families and a tiny tokenizer, made in the process that tests.

model = tiny_model("qwen3")                       # two layers, float32, seeded
tokenizer = tiny_tokenizer()                      # byte-level BPE, 384 tokens, ChatML template
folder = save_tiny_checkpoint(tmp_path / "base")  # both, as a Llama checkpoint
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCABULARY = 384
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}

FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 5, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "phi3": {"tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 4.0, "tie_word_embeddings": True},
    "gemma": {"head_dim": 8},
    "olmo2": {"tie_word_embeddings": False},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "smollm3": {"tie_word_embeddings": True},
    "stablelm": {"tie_word_embeddings": False},
    "starcoder2": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
}
"""Family (`model_type`) → what its config needs beyond the common sizes."""

_NAMED_OTHERWISE = {"gpt2": ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}


def tiny_model(family: str = "llama", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Return a two-layer model of the family in float32 with weights drawn from `seed`.

    Keywords override the config, `attn_implementation` among them.
    """
    common = _COMMON
    if family in _NAMED_OTHERWISE:
        common = {name: _COMMON[name] for name in _NAMED_OTHERWISE[family]}
    values = {**common, **FAMILIES[family], **config}
    attention = values.pop("attn_implementation", "eager" if family == "gemma2" else "sdpa")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **values), attn_implementation=attention
        )
        # Biases and norms start as zeros and ones; drawn at random they show what is forgotten.
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_llama(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Return `tiny_model("llama")`."""
    return tiny_model("llama", seed=seed, **config)


def tiny_tokenizer(**options: Any) -> PreTrainedTokenizerBase:
    """Return a fresh byte-level BPE tokenizer of 384 tokens with a ChatML template.

    Ids: 0 `<unk>`, 1 `<s>`, 2 `</s>` (eos), 3 `<pad>`, 4 `<|im_start|>`, 5 `<|im_end|>`. It adds
    no special token by itself. Keywords go to `PreTrainedTokenizerFast`.
    """
    given = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()), **{**given, **options}
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_tiny_checkpoint(
    folder: Path | str, family: str = "llama", *, seed: int = 0, **config: Any
) -> Path:
    """Write a tiny model and the tiny tokenizer to a folder, as a hub checkpoint has them."""
    tiny_model(family, seed=seed, **config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


@cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer.to_str()


_SENTENCES = (
    "system user assistant You are a helpful assistant. Answer the question in one sentence.",
    "What is the capital of France? The capital of France is Paris.",
    "How many days are there in a week? There are seven days in a week.",
    "Please write a short story about a river, a bridge and the people who cross it every morning.",
    "Every weekday at nine in the morning; on the first day of the month; twenty past four.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction: ### Input: ### Response: The quick brown fox jumps over the lazy dog.",
    "Train the model, merge the adapter, compare the result with what was trained.",
)
