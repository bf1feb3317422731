"""Greedy answers do not depend on what else is in the batch."""

import pytest
import torch

from newtune.model.attention import register_attention
from newtune.model.generate import generate_greedy, stream_chat
from newtune.model.head import install_head
from tiny import tiny_model, tiny_tokenizer

PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17], [18, 19]]


def model_of(family, attention="newtune_packed"):
    register_attention()
    model = tiny_model(family, attn_implementation=attention)
    install_head(model)
    return model


def answers(model, batch_size, stop_ids=(2,), new=12):
    return generate_greedy(
        model, tiny_tokenizer(), PROMPTS,
        max_new_tokens=new, batch_size=batch_size, stop_ids=stop_ids,
    )  # fmt: skip


@pytest.mark.parametrize(
    "family",
    ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "rwkv", "recurrent_gemma"],
)
def test_a_padded_batch_answers_as_one_by_one(family):
    """RWKV and RecurrentGemma take no mask: what stands before a prompt stays in their state."""
    own = family in ("gpt2", "rwkv", "recurrent_gemma")
    model = model_of(family, "eager" if own else "newtune_packed")
    assert answers(model, 4) == answers(model, 1)


def test_an_answer_is_the_likeliest_token_each_time():
    model = model_of("llama").eval()
    expected = list(PROMPTS[0])
    for _ in range(5):
        expected.append(model(torch.tensor([expected])).logits[0, -1].argmax().item())
    assert answers(model, 2, stop_ids=(), new=5)[0] == expected[3:]


def test_an_answer_ends_before_its_stop_token():
    model = model_of("llama")
    full = answers(model, 4, stop_ids=())
    stop = full[0][3]
    cut = answers(model, 4, stop_ids=(stop,))
    assert cut[0] == full[0][: full[0].index(stop)]
    assert all(stop not in answer for answer in cut)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(training):
    model = model_of("llama").train(training)
    answers(model, 4)
    assert model.training == training


def test_a_stream_says_what_greedy_says():
    model, tokenizer = model_of("llama"), tiny_tokenizer()
    text = "".join(stream_chat(model, tokenizer, PROMPTS[2], max_new_tokens=12, stop_ids=[2]))
    assert text == tokenizer.decode(answers(model, 1)[2], skip_special_tokens=True)
