"""The tokenizer: added tokens, padding, and what GGUF files lose."""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from newtune.config.model import ModelSection
from newtune.config.tokenizer import TokenizerSection
from newtune.errors import ModelError
from newtune.model.facts import read_model_facts
from newtune.model.load import load_model
from newtune.model.tokenizer import (
    PRE_TOKENIZERS,
    choose_padding,
    load_tokenizer,
    new_token_ids,
    read_tokenizer,
)
from newtune.plan.parts import ModelPlan, PrecisionPlan
from tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    return save_tiny_checkpoint(tmp_path / "base")


def sections(folder, tokenizer=None, **model):
    return (
        TokenizerSection.model_validate(tokenizer or {}),
        ModelSection.model_validate({"base_model": str(folder), **model}),
    )


def test_special_and_added_tokens(folder):
    given = sections(folder, {
        "special_tokens": {"eos_token": "<|im_end|>", "pad_token": "<new-pad>",
                           "additional_special_tokens": ["<tool>"]},
        "tokens": ["<word>", "hello"],
    })  # fmt: skip
    tokenizer = load_tokenizer(*given)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 5)
    assert tokenizer.pad_token == "<new-pad>"
    ids = tokenizer("<tool><word> hello").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<tool>", "<word>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<word> hello"
    new = tokenizer.convert_ids_to_tokens(new_token_ids(*given, tokenizer))
    assert set(new) == {"<new-pad>", "<tool>", "<word>", "hello"}


def test_nothing_is_new_when_nothing_was_added(folder):
    given = sections(folder)
    tokenizer = load_tokenizer(*given)
    assert new_token_ids(*given, tokenizer) == []
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_added_tokens_survive_saving(folder, tmp_path):
    tokenizer = load_tokenizer(*sections(folder, {"tokens": ["<word>"]}))
    tokenizer.save_pretrained(tmp_path / "saved")
    assert read_tokenizer(str(tmp_path / "saved")).get_vocab() == tokenizer.get_vocab()


def test_without_a_padding_token_the_end_token_fills_up():
    tokenizer = tiny_tokenizer(pad_token=None)
    choose_padding(tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_without_any_special_token_the_key_to_set_is_named():
    bare = tiny_tokenizer(pad_token=None, eos_token=None, unk_token=None, bos_token=None)
    with pytest.raises(ModelError, match="special_tokens"):
        choose_padding(bare)


def test_remote_code_warns_with_the_repository(folder, caplog):
    load_tokenizer(*sections(folder, trust_remote_code=True))
    assert str(folder) in caplog.text
    assert "revision_of_model" in caplog.text
    caplog.clear()
    load_tokenizer(*sections(folder, trust_remote_code=True, revision_of_model="abc"))
    assert not caplog.text


def test_the_tokenizer_may_come_from_elsewhere(folder, tmp_path):
    other = tiny_tokenizer()
    other.add_tokens(["<elsewhere>"])
    other.save_pretrained(tmp_path / "other")
    tokenizer = load_tokenizer(*sections(folder, {"tokenizer_config": str(tmp_path / "other")}))
    assert "<elsewhere>" in tokenizer.get_vocab()


def test_an_unknown_class_suggests_the_right_one(folder):
    with pytest.raises(ModelError, match="`LlamaTokenizer`"):
        load_tokenizer(*sections(folder, {"tokenizer_type": "LamaTokenizer"}))


def test_a_folder_without_a_tokenizer_lists_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"tokenizer.*notes\.txt"):
        read_tokenizer(str(tmp_path))


def words(name, text):
    split = PRE_TOKENIZERS[name]()
    pieces = [piece for piece, _ in split.pre_tokenize_str(text)]
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert "".join(pieces) == "".join(p for p, _ in alphabet.pre_tokenize_str(text))
    return pieces


@pytest.mark.parametrize(("name", "expected"), [
    ("gpt-2", ["in", "Ġ20266"]),
    ("smollm", ["in", "Ġ", "2", "0", "2", "6", "6"]),
    ("llama-bpe", ["in", "Ġ", "202", "66"]),
    ("qwen2", ["in", "Ġ", "2", "0", "2", "6", "6"]),
])  # fmt: skip
def test_digits_are_split_as_the_file_says(name, expected):
    assert words(name, "in 20266") == expected


def write_gguf(path, pre="smollm"):
    """Write a two-layer Llama with the tiny tokenizer, as llama.cpp's converter lays it out."""
    model, tokenizer = tiny_model(tie_word_embeddings=True), tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(384)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 6 else 1 for _, index in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = weight.numpy().astype(np.float32)
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # llama.cpp interleaves what transformers keeps in halves
                halves = values.reshape(heads, 2, -1, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        mapped = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(mapped, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_tokenizer_is_repaired_and_named_length_is_kept(tmp_path):
    tokenizer = read_tokenizer(str(write_gguf(tmp_path / "tiny.gguf")))
    assert tokenizer.model_max_length == 512
    ids = tokenizer("in 2026<|im_end|>").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[-5:] == ["2", "0", "2", "6", "<|im_end|>"]
    assert tokenizer.eos_token_id == 2
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    tokenizer.save_pretrained(tmp_path / "saved")
    again = read_tokenizer(str(tmp_path / "saved"))
    assert again("in 2026<|im_end|>").input_ids == ids
    assert again.model_max_length == 512


def test_an_unknown_way_of_splitting_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"`alien`.*tokenizer_config"):
        read_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", pre="alien")))


def test_a_gguf_model_loads_trainable_savable_and_equal(tmp_path):
    source = str(write_gguf(tmp_path / "tiny.gguf"))
    plan = ModelPlan(
        source=source, config_source=source, revision=None, model_class="AutoModelForCausalLM",
        trust_remote_code=False, ignore_patterns=(), config_overrides={}, load_kwargs={},
        attention="newtune_packed", precision=PrecisionPlan("float32", "float32", None, None),
        device="cpu", gradient_checkpointing=False, gradient_checkpointing_kwargs={},
        embedding_multiple=None,
    )  # fmt: skip
    model = load_model(plan, None, tokenizer=read_tokenizer(source))
    tokens = torch.tensor([[7, 8, 9, 10]])
    expected = tiny_model(tie_word_embeddings=True)(tokens).logits
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    facts = read_model_facts(source)
    assert (facts.max_positions, facts.checkpoint_dtype) == (512, None)
