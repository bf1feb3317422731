"""The tiny models and the tiny tokenizer are what other tests take them for."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import FAMILIES, VOCABULARY, save_tiny_checkpoint, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_with_logits_of_its_own_type(family):
    model = tiny_model(family)
    assert model.config.model_type == family
    assert model(torch.tensor([[7, 8, 9]])).logits.shape == (1, 3, VOCABULARY)


def test_the_same_seed_gives_the_same_model():
    first, second = tiny_model(seed=1), tiny_model(seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_the_tokenizer_round_trips_and_a_checkpoint_loads(tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "base", "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Grüße, 12 o'clock?\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "qwen2"
