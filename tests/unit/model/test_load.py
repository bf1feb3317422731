"""Loading: formats, refusals, embeddings, overrides."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from newtune.errors import ConfigError, ExportError, ModelError, SetupError
from newtune.model.facts import read_model_facts
from newtune.model.load import load_model
from newtune.model.sources import find_source
from newtune.outputs.load import load_folder
from newtune.plan.parts import AdapterPlan, ModelPlan, PrecisionPlan
from newtune.plan.targets import count_trainable
from tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

MIXED = PrecisionPlan("bfloat16", "float32", "bfloat16", None)
EXACT = PrecisionPlan("float32", "float32", None, None)
LORA = AdapterPlan(
    kind="lora", rank=2, alpha=4.0, dropout=0.0, target_modules=("q_proj",), layers=None,
    modules_to_save=(), fan_in_fan_out=False, use_rslora=False, use_dora=False, init=True,
    continue_from=None,
)  # fmt: skip
TOKENS = torch.tensor([[7, 8, 9]])


@pytest.fixture
def folder(tmp_path):
    return save_tiny_checkpoint(tmp_path / "base")


def plan(folder, **changes):
    values = {
        "source": str(folder), "config_source": str(folder), "revision": None,
        "model_class": "AutoModelForCausalLM", "trust_remote_code": False, "ignore_patterns": (),
        "config_overrides": {}, "load_kwargs": {}, "attention": "newtune_packed",
        "precision": EXACT, "device": "cpu", "gradient_checkpointing": False,
        "gradient_checkpointing_kwargs": {}, "embedding_multiple": None,
    }  # fmt: skip
    return ModelPlan(**{**values, **changes})


def load(folder, adapter=None, tokenizer=None, new_token_ids=None, **changes):
    return load_model(
        plan(folder, **changes),
        adapter,
        tokenizer=tokenizer or tiny_tokenizer(),
        new_token_ids=new_token_ids,
    )


def dtypes(model, *, trained):
    return {p.dtype for p in model.parameters() if p.requires_grad == trained}


def test_full_fine_tuning_trains_everything_and_equals_the_checkpoint(folder):
    model = load(folder)
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    assert model.config._attn_implementation == "newtune_packed"
    torch.testing.assert_close(model(TOKENS).logits, tiny_model()(TOKENS).logits)


def test_frozen_weights_are_16_bit_and_trained_ones_float32(folder):
    model = load(folder, LORA, precision=MIXED)
    assert dtypes(model, trained=False) == {torch.bfloat16}
    assert dtypes(model, trained=True) == {torch.float32}
    assert dtypes(load(folder, precision=MIXED), trained=True) == {torch.float32}


def test_pure_16_bit_trains_16_bit_weights(folder):
    pure = PrecisionPlan("bfloat16", "bfloat16", None, None)
    assert dtypes(load(folder, LORA, precision=pure), trained=True) == {torch.bfloat16}


def test_unfrozen_parameters_train_alone(folder):
    patterns = (r"model\.layers\.1\.mlp", "lm_head")
    model = load(folder, precision=MIXED, unfrozen_parameters=patterns)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "lm_head.weight", *(f"model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up", "down"))
    }  # fmt: skip
    assert dtypes(model, trained=True) == {torch.float32}
    assert dtypes(model, trained=False) == {torch.bfloat16}
    facts = read_model_facts(str(folder))
    trained_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count_trainable(facts, None, patterns) == trained_count


def test_old_bin_weights_load_and_other_pickles_are_refused(folder, caplog):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "consolidated.pth")
    with pytest.raises(ModelError, match=r"pickles \(consolidated.pth\)"):
        load(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    with caplog.at_level("INFO", "newtune"):
        model = load(folder)
    assert "weights_only=True" in caplog.text
    torch.testing.assert_close(model(TOKENS).logits, tiny_model()(TOKENS).logits)


def test_a_bin_file_that_would_run_code_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save(nn.Linear(2, 2), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could run code"):
        load(folder)


def test_missing_and_partial_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete: 1 parameters.*layers\.1\.mlp\.up_proj"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no weights.*config\.json"):
        load(folder)


def test_a_file_that_was_cut_off_is_an_error(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot read its weights"):
        load(folder)
    with pytest.raises(ExportError, match="holds no model that can be loaded"):
        load_folder(folder, device="cpu")


def test_a_missing_shard_is_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="100KB")
    sorted(tmp_path.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(ModelError, match="cannot read its weights"):
        load(tmp_path)


@pytest.mark.parametrize(("source", "said"), [
    ("./nowhere", "no such folder"), ("./nowhere/x.gguf", "no such file"), (__file__, "is a file"),
])  # fmt: skip
def test_sources_that_are_not_there(source, said):
    with pytest.raises(ModelError, match=said):
        find_source(source)


def test_a_folder_without_config_lists_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"configuration.*notes\.txt"):
        read_model_facts(str(tmp_path))


def test_embeddings_grow_to_hold_tokens_to_a_multiple_and_never_shrink(folder):
    tokenizer = tiny_tokenizer()
    before = load(folder).model.embed_tokens.weight
    tokenizer.add_tokens(["<a>", "<b>"])
    model = load(folder, tokenizer=tokenizer)
    assert model.model.embed_tokens.weight.shape[0] == model.lm_head.weight.shape[0] == 386
    torch.testing.assert_close(model.model.embed_tokens.weight[385], before.mean(0))
    assert load(folder, tokenizer=tokenizer, embedding_multiple=32).config.vocab_size == 416
    spare = save_tiny_checkpoint(folder.parent / "spare", vocab_size=500)
    assert load(spare, tokenizer=tokenizer).config.vocab_size == 500


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trains_just_the_new_rows(tmp_path, tied):
    base = save_tiny_checkpoint(tmp_path / "tied", tie_word_embeddings=tied)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>"])
    model = load(base, LORA, tokenizer=tokenizer)
    rows = {tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad and "delta" in n}
    assert rows == {(2, 32)}
    facts = read_model_facts(str(base))
    assert model.get_nb_trainable_parameters()[0] == count_trainable(facts, LORA, new_tokens=2)


def test_an_override_of_an_unknown_field_suggests_the_right_one(folder):
    with pytest.raises(ConfigError, match=r"config.hiden_act: is no field of Ll.*`hidden_act`"):
        read_model_facts(str(folder), config_overrides={"hiden_act": "relu"})


def test_an_unknown_class_suggests_the_right_one(folder):
    with pytest.raises(ModelError, match="`LlamaForCausalLM`"):
        read_model_facts(str(folder), model_class="LLamaForCausalLM")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3", "mixtral", "gpt2"])
def test_facts_agree_with_the_model_itself(tmp_path, family):
    facts = read_model_facts(str(save_tiny_checkpoint(tmp_path / "base", family)))
    model = tiny_model(family)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.parameter_shapes == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert (facts.model_type, facts.layers, facts.vocab_size) == (family, 2, 384)
    assert (facts.head_name, facts.max_positions) == ("lm_head", 512)
    assert facts.checkpoint_dtype == "float32"
    assert facts.tied_embeddings == (model.lm_head.weight is model.get_input_embeddings().weight)


def test_checkpointing_is_on_when_asked(folder):
    assert load(folder, LORA, gradient_checkpointing=True).is_activation_checkpointing
    assert not load(folder, LORA).get_base_model().is_activation_checkpointing


def test_a_loaded_model_saves_as_it_was(folder, tmp_path):
    load(folder).save_pretrained(tmp_path / "again")
    first, second = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    configs = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "again")]
    assert configs[0] == configs[1]


def test_gguf_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'newtune\[gguf\]'"):
        find_source(str(tmp_path / "x.gguf"))


def test_an_evaluation_leaves_the_weights_of_rwkv_alone(tmp_path):
    """In evaluation it would halve some in place, and be saved so."""
    folder = save_tiny_checkpoint(tmp_path / "rwkv", "rwkv", rescale_every=1)
    model = load(folder, attention="eager")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()(TOKENS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
