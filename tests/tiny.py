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
    PreTrainedConfig,
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

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1,
    "first_k_dense_replace": 1, **_EXPERTS,
}  # fmt: skip
_MAMBA2 = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_n_groups": 2,
    "mamba_d_state": 8, "mamba_chunk_size": 16,
}  # fmt: skip
_DELTA = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
_MIXED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 5, "tie_word_embeddings": False},
    "ministral": {"sliding_window": 5, "head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 64, **_EXPERTS},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "qwen3_next": {
        "head_dim": 16, "num_experts": 4, "shared_expert_intermediate_size": 64,
        **_DELTA, **_EXPERTS,
    },
    "qwen3_5_text": {"head_dim": 16, **_DELTA},
    "gemma": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "gemma3n_text": {
        "head_dim": 16, "sliding_window": 5, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 64,
        "laurel_rank": 64, "altup_num_inputs": 2, "intermediate_size": [128] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {
        "head_dim": 16, "global_head_dim": 16, "sliding_window": 5,
        "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 64,
    },
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"tie_word_embeddings": False},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": {"multi_query": True},
    "gpt_neox": {},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": {
        "hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 5,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 512,
    },
    "gptj": {**_GPT2, "rotary_dim": 8},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "opt": {
        "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 512, "word_embed_proj_dim": 64,
    },
    "rwkv": {
        "hidden_size": 64, "attention_hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "context_length": 512,
    },
    "mamba": {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 64},
    "mamba2": {
        "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "num_heads": 8,
        "head_dim": 16, "n_groups": 2, "chunk_size": 16,
    },
    "falcon_mamba": {
        "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 64,
    },
    "jamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4,
        "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 64,
        "use_mamba_kernels": False,
    },
    "bamba": {"hidden_size": 64, **_MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {
        "hidden_size": 64, **_MAMBA2, "head_dim": 16, "lm_head_multiplier": 0.5,
    },
    "granitemoehybrid": {
        "hidden_size": 64, **_MAMBA2, "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64,
        "logits_scaling": 4.0,
    },
    "nemotron_h": {
        "layer_types": ["mamba", "attention", "moe", "mamba"], "num_hidden_layers": 4,
        "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8,
        "chunk_size": 16, "head_dim": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "moe_shared_expert_intermediate_size": 64, **_EXPERTS,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 64, "head_dim": 16,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"], "block_ff_dim": 128,
        "block_auto_adjust_ff_dim": False,
    },
    "minimax": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "block_size": 8,
    },
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5, "head_dim": 16, **_MIXED},
    "starcoder2": {"tie_word_embeddings": True, "sliding_window": 5},
    "olmo": {},
    "olmo2": {"tie_word_embeddings": False},
    "olmo3": _MIXED,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granite": {"logits_scaling": 4.0, "tie_word_embeddings": True},
    "granitemoe": {"logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**_LATENT, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "deepseek_v3": {**_LATENT, "n_group": 2, "topk_group": 1},
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, **_MIXED,
    },
    "llama4_text": {
        "head_dim": 16, "attention_chunk_size": 8, "num_local_experts": 4,
        "num_experts_per_tok": 1, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2,
        "num_hidden_layers": 4,
    },
    "smollm3": {"tie_word_embeddings": True, "no_rope_layer_interval": 2},
    "stablelm": {"tie_word_embeddings": False},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "glm4_moe": {
        "head_dim": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, **_EXPERTS,
    },
    "nemotron": {},
    "exaone4": {"sliding_window": 5},
    "ernie4_5": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "seed_oss": {"head_dim": 16},
    "arcee": {},
    "apertus": {},
}  # fmt: skip
"""Family (`model_type`) → what its config needs beyond the common sizes."""

LEAKING = frozenset(
    {
        "bamba", "bloom", "falcon", "falcon_h1", "falcon_mamba", "gpt_oss", "granitemoehybrid",
        "jamba", "lfm2", "mamba", "mamba2", "minimax", "mpt", "nemotron_h", "opt", "qwen3_5_text",
        "qwen3_next", "recurrent_gemma", "rwkv",
    }
)  # fmt: skip
"""Families whose packed examples were seen to leak, each with all of its layer kinds."""

_NAMED_OTHERWISE = frozenset(
    {
        "bloom", "falcon_mamba", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mamba", "mamba2",
        "mpt", "opt", "rwkv",
    }
)  # fmt: skip
"""Families whose config has no field for the common sizes, but for the tokens'."""
_TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
_ONLY_EAGER = frozenset(
    {
        "bloom", "falcon_mamba", "gemma2", "gpt_neo", "gpt_oss", "gptj", "mamba", "mamba2", "mpt",
        "rwkv",
    }
)  # fmt: skip


def tiny_config(family: str = "llama", **config: Any) -> PreTrainedConfig:
    """Return the config of `tiny_model`, changed by keywords."""
    common = _COMMON
    if family in _NAMED_OTHERWISE:
        common = {name: _COMMON[name] for name in _TOKENS}
    made: PreTrainedConfig = AutoConfig.for_model(
        family, **{**common, **FAMILIES[family], **config}
    )
    return made


def tiny_model(family: str = "llama", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Return a two-layer model of the family in float32 with weights drawn from `seed`.

    Keywords override the config, `attn_implementation` among them.
    """
    default = "eager" if family in _ONLY_EAGER else "sdpa"
    attention = config.pop("attn_implementation", default)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            tiny_config(family, **config), attn_implementation=attention
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
