"""What is saved is all there, in the dtype asked for, or nothing is."""

import json
import resource
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from newtune.errors import ExportError
from newtune.outputs import staging
from newtune.outputs.save import read_manifest, save_weights
from tiny import tiny_model, tiny_tokenizer


def lora(model, **options):
    return get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **options}))


def test_an_adapter_comes_back_as_it_was(tmp_path):
    model = lora(tiny_model())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    manifest = save_weights(model, tiny_tokenizer(), tmp_path, base_source="tiny/base")
    again = PeftModel.from_pretrained(tiny_model(), tmp_path)
    ids = torch.arange(6, 20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
    assert manifest.kind == "adapter"
    assert manifest.base.source == "tiny/base"
    assert read_manifest(tmp_path) == manifest
    assert not (tmp_path / "README.md").exists()
    assert not list(tmp_path.glob(".writing-*"))


def test_the_chat_template_of_the_training_is_saved(tmp_path):
    tokenizer = tiny_tokenizer()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    save_weights(lora(tiny_model()), tokenizer, tmp_path, chat_template=template)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == template
    assert tokenizer.chat_template != template


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_a_whole_model_is_saved_in_the_dtype_of_its_base(tmp_path, family):
    model = tiny_model(family)
    manifest = save_weights(model, tiny_tokenizer(), tmp_path, dtype="bfloat16")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].bfloat16()), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert manifest.parameters == model.num_parameters()
    assert manifest.dtype == "bfloat16"


def test_a_tensor_lost_on_the_way_to_the_disk_is_noticed(tmp_path, monkeypatch):
    model = tiny_model()
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    monkeypatch.setattr(model, "state_dict", lambda: state)
    with pytest.raises(ExportError, match=r"missing_keys.*layers\.1\.mlp\.up_proj"):
        save_weights(model, tiny_tokenizer(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_with_nan_is_refused(tmp_path):
    model = lora(tiny_model())
    next(p for n, p in model.named_parameters() if "lora_A" in n).data[0, 0] = float("nan")
    with pytest.raises(ExportError, match="NaN"):
        save_weights(model, tiny_tokenizer(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_result_whole(tmp_path):
    save_weights(lora(tiny_model()), tiny_tokenizer(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # files end here, as on a full disk
    try:
        with pytest.raises(ExportError, match="could not write"):
            save_weights(lora(tiny_model(), r=64), tiny_tokenizer(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_will_not_fit_is_not_begun(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ExportError, match=r"only 0\.00 GB are free"):
        save_weights(tiny_model(), tiny_tokenizer(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_base_is_told_by_its_weights(tmp_path):
    identity = save_weights(lora(tiny_model()), tiny_tokenizer(), tmp_path / "a").base
    same = save_weights(
        lora(tiny_model(), r=2, target_modules=["o_proj"]), tiny_tokenizer(), tmp_path / "b"
    )
    other = save_weights(lora(tiny_model(seed=1)), tiny_tokenizer(), tmp_path / "c")
    rounded = save_weights(lora(tiny_model().bfloat16()), tiny_tokenizer(), tmp_path / "d")
    assert same.base.weights == identity.weights
    assert other.base.weights != identity.weights
    assert rounded.base.weights != identity.weights
    assert rounded.base.dtype == "bfloat16"


def test_grown_embeddings_do_not_change_the_identity_of_the_base(tmp_path):
    def grown():
        model = tiny_model()
        model.resize_token_embeddings(400)
        return model

    plain = save_weights(lora(tiny_model()), tiny_tokenizer(), tmp_path / "a").base
    tokens = save_weights(
        lora(grown(), trainable_token_indices=[384, 385]), tiny_tokenizer(), tmp_path / "b"
    ).base
    saved = save_weights(
        lora(grown(), modules_to_save=["embed_tokens", "lm_head"]), tiny_tokenizer(), tmp_path / "c"
    ).base
    assert plain.weights == tokens.weights == saved.weights


def test_damage_is_found(tmp_path):
    manifest = save_weights(lora(tiny_model()), tiny_tokenizer(), tmp_path)
    assert staging.damaged_files(tmp_path, manifest.files) == []
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights[next(iter(weights))][0, 0] += 1
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "tokenizer.json").unlink()
    found = staging.damaged_files(tmp_path, manifest.files)
    assert found == ["adapter_model.safetensors", "tokenizer.json"]
