"""Models, tokenizers and adapters by hub id, from a hub on this machine; errors that help."""

import dataclasses
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hub_server import Break, Hub
from newtune.errors import ModelError
from newtune.model.adapters import read_adapter
from newtune.model.facts import read_model_facts
from newtune.model.load import fetch_weights, load_base, load_model
from newtune.model.tokenizer import read_tokenizer
from newtune.plan.parts import AdapterPlan, ModelPlan
from runs import TinyRun
from tiny import save_tiny_checkpoint, tiny_llama, tiny_tokenizer

SECRET = "hf_never_to_be_seen_0123456789"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("hub-models") / "base")


def planned(**changes) -> ModelPlan:
    plan = TinyRun(Path()).plan().model
    given = {"source": "someone/tiny", "config_source": "someone/tiny", **changes}
    return dataclasses.replace(plan, **given)


def adapter_plan(**changes) -> AdapterPlan:
    plan = TinyRun(Path(), lora=True).plan().adapter
    assert plan is not None
    return dataclasses.replace(plan, **changes)


def refused(action, *arguments, **options) -> str:
    with pytest.raises(ModelError) as caught:
        action(*arguments, **options)
    return str(caught.value)


def test_the_revision_counts_for_configuration_tokenizer_and_weights(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add("someone/tiny", checkpoint, tag="v1")
    save_tiny_checkpoint(tmp_path / "new", seed=1, rms_norm_eps=0.5)
    tiny_tokenizer(model_max_length=77).save_pretrained(tmp_path / "new")
    hub.add("someone/tiny", tmp_path / "new")
    old, new = (load_base(planned(revision=revision)) for revision in ("v1", None))
    assert (old.config.rms_norm_eps, new.config.rms_norm_eps) == (1e-6, 0.5)
    weights = [model.get_input_embeddings().weight for model in (old, new)]
    assert torch.equal(weights[0], tiny_llama().get_input_embeddings().weight)
    assert torch.equal(weights[1], tiny_llama(seed=1).get_input_embeddings().weight)
    assert read_tokenizer("someone/tiny", revision="v1").model_max_length == 512
    assert read_tokenizer("someone/tiny").model_max_length == 77
    assert read_model_facts("someone/tiny", revision="v1").layers == 2


def test_an_adapter_names_its_base_by_id_and_revision(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add("someone/tiny", checkpoint, tag="v1")
    for number, patterns in enumerate([(), ("*.md",)]):
        plan = planned(revision="v1", ignore_patterns=patterns)
        model = load_model(plan, adapter_plan(), tokenizer=tiny_tokenizer())
        model.save_pretrained(tmp_path / str(number))
        config = json.loads((tmp_path / str(number) / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny", "v1")


def test_training_goes_on_from_an_adapter_on_the_hub(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add("someone/tiny", checkpoint)
    made = get_peft_model(tiny_llama(), LoraConfig(r=3, target_modules=["q_proj"]))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    made.save_pretrained(tmp_path / "adapter")
    hub.add("someone/adapter", tmp_path / "adapter")
    plan = adapter_plan(continue_from="someone/adapter")
    assert read_adapter("someone/adapter").continue_from == "someone/adapter"
    model = load_model(planned(), plan, tokenizer=tiny_tokenizer())
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all(torch.all(value == 1) for name, value in trained.items() if "lora_B" in name)
    assert len(trained) == 4


def test_an_adapter_that_is_not_there_is_told_before_anything_is_loaded(hub: Hub) -> None:
    hub.add("someone/adapters", {"adapter_config.json": b"{}"})
    said = refused(read_adapter, "someone/adapter")
    assert "lora_model_dir" in said
    assert "Did you mean `someone/adapters`" in said


def test_weights_are_fetched_once_and_nothing_besides(hub: Hub, checkpoint: Path) -> None:
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    more = {"pytorch_model.bin": b"x", "onnx/model.bin": b"y", "consolidated.safetensors": b"z"}
    hub.add("someone/tiny", {**files, **more})
    fetch_weights(planned())
    load_base(planned())
    fetched = {request.path.rsplit("/", 1)[-1] for request in hub.asked("/lfs/", "GET")}
    assert fetched == {"model.safetensors"}
    assert len(hub.asked("/lfs/", "GET")) == 1


def test_weights_in_several_files_are_fetched_all(hub: Hub, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="60KB")
    hub.add("someone/tiny", tmp_path)
    fetch_weights(planned())
    shards = [path.name for path in tmp_path.glob("*.safetensors")]
    assert len(shards) > 1
    assert len(hub.asked("/lfs/", "GET")) == len(shards)
    hub.requests.clear()
    load_base(planned())
    assert not hub.asked("/lfs/")


def test_only_safe_weights_are_read(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    del files["model.safetensors"]
    hub.add("someone/tiny", files)
    assert "holds no weights" in refused(fetch_weights, planned())
    torch.save(tiny_llama().state_dict(), tmp_path / "w")
    hub.add("someone/tiny", {**files, "weights.pt": b"x"})
    assert "pickles (weights.pt)" in refused(load_base, planned())
    hub.add("someone/tiny", {**files, "pytorch_model.bin": (tmp_path / "w").read_bytes()})
    fetch_weights(planned())
    loaded = load_base(planned()).get_input_embeddings().weight
    assert torch.equal(loaded, tiny_llama().get_input_embeddings().weight)


def test_private_models_need_their_token(hub: Hub, checkpoint: Path, monkeypatch) -> None:
    hub.add("me/tiny", checkpoint, private=True)
    said = refused(read_model_facts, "me/tiny")
    assert "no token is given (`hf auth login` stores one, or set HF_TOKEN)" in said
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me", SECRET))
    assert read_model_facts("me/tiny").layers == 2
    load_base(planned(source="me/tiny", config_source="me/tiny"))


def test_a_gated_model_says_where_to_accept_and_whose_token_it_was(
    hub: Hub, checkpoint: Path, monkeypatch, tmp_path
) -> None:
    hub.add("someone/tiny", checkpoint, gated=True)
    assert "no token is given" in refused(read_model_facts, "someone/tiny")
    hub.add_user("me", SECRET)
    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    said = refused(read_model_facts, "someone/tiny")
    assert f"gated: accept its terms at {hub.url}/someone/tiny" in said
    assert "the token that `hf auth login` stored (of `me`) is used" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("id", "revision", "expected"),
    [
        ("someone/tny", None, "has no model `someone/tny`.*Did you mean `someone/tiny`"),
        ("smeone/tiny", None, "has no model.*Did you mean `someone/tiny`"),
        ("someone/tiny", "v1.0", "no revision `v1.0`.*It has: main, v1.*Did you mean `v1`"),
        ("nothing-like-it", None, "has no model.*written with `./` in front"),
    ],
)
def test_a_mistake_is_named_with_what_there_is(
    hub: Hub, checkpoint: Path, id, revision, expected
) -> None:
    hub.add("someone/tiny", checkpoint, tag="v1")
    for read in (read_model_facts, read_tokenizer):
        with pytest.raises(ModelError, match=f"(?s){expected}"):
            read(id, revision=revision)


def test_a_filled_cache_works_offline(hub: Hub, checkpoint: Path, monkeypatch) -> None:
    hub.add("someone/tiny", checkpoint)
    fetch_weights(planned())
    load_base(planned())
    read_tokenizer("someone/tiny")
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch_weights(planned())
    assert load_base(planned()).name_or_path == "someone/tiny"
    assert len(read_tokenizer("someone/tiny")) == 384
    assert not hub.requests


def test_a_filled_cache_works_while_the_hub_is_away(
    hub: Hub, checkpoint: Path, monkeypatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("someone/tiny", checkpoint)
    fetch_weights(planned())
    load_base(planned())
    hub.breaks.append(Break("", times=999))
    fetch_weights(planned())
    assert load_base(planned()).name_or_path == "someone/tiny"


def test_weights_that_the_cache_lacks_are_told_before_the_data_is_read(
    hub: Hub, tmp_path: Path, monkeypatch
) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="60KB")
    hub.add("someone/tiny", tmp_path)
    fetch_weights(planned())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch_weights(planned())
    next(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("model-00002*")).unlink()
    said = refused(fetch_weights, planned())
    assert "`someone/tiny`: cannot read its weights: HF_HUB_OFFLINE is set" in said


def test_an_adapter_is_found_offline(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    hub.add("someone/tiny", checkpoint)
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    hub.add("someone/adapter", tmp_path)
    plan = adapter_plan(continue_from="someone/adapter")
    load_model(planned(), plan, tokenizer=tiny_tokenizer())
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert read_adapter("someone/adapter").continue_from == "someone/adapter"
    load_model(planned(), plan, tokenizer=tiny_tokenizer())
    assert not hub.requests


def test_an_empty_cache_offline_says_how_to_fill_it(hub: Hub, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refused(read_model_facts, "someone/tiny", revision="v1")
    assert "HF_HUB_OFFLINE is set" in said
    assert "`hf download someone/tiny --revision v1`" in said
    assert not hub.requests


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    hub: Hub, checkpoint: Path, monkeypatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("someone/tiny", checkpoint)
    hub.breaks.append(Break("/lfs/", after=1000, times=2))
    fetch_weights(planned())
    assert len(hub.asked("/lfs/", "GET")) == 3
    assert torch.equal(
        load_base(planned()).get_input_embeddings().weight,
        tiny_llama().get_input_embeddings().weight,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        Break("/lfs/", after=0, times=99),
        Break("/lfs/", status=503, times=99),
        Break("", times=999),
    ],
    ids=["breaks off for ever", "out of order", "no answer at all"],
)
def test_a_hub_that_stays_away_is_told_without_a_traceback(
    hub: Hub, checkpoint: Path, monkeypatch, wrong
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("someone/tiny", checkpoint)
    hub.breaks.append(Break(wrong.path, wrong.after, wrong.status, wrong.times))
    assert "`someone/tiny`: cannot read its" in refused(fetch_weights, planned())
