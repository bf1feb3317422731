"""`newtune upload`: what goes to a hub, what is refused, and that it loads from there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from hub_server import Hub
from newtune.cli.main import app
from tiny import save_tiny_checkpoint

SECRET = "hf_never_to_be_seen_0123456789"
IDS = torch.arange(10, 30)[None]


def newtune(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and merge a tiny adapter once; return the configuration's path."""
    folder = tmp_path_factory.mktemp("upload")
    save_tiny_checkpoint(folder / "base")
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} {n}"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = folder / "run.yaml"
    path.write_text(f"""
base_model: {folder}/base
datasets: [{{path: {folder}/rows.jsonl, type: alpaca}}]
dataset_prepared_path: {folder}/prepared
sequence_len: 160
adapter: lora
lora_r: 8
lora_target_linear: true
bf16: false
micro_batch_size: 1
gradient_accumulation_steps: 2
max_steps: 3
learning_rate: 1e-2
save_strategy: epoch
output_dir: {folder}/run
""")
    for command in ("train", "merge"):
        done = newtune(command, path)
        assert done.exit_code == 0, done.output
    return path


@pytest.fixture
def mine(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub to which the token in HF_TOKEN may write as `me`."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me", SECRET))
    return hub


def test_the_adapter_loads_from_the_hub_as_it_was_trained(
    config: Path, mine: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    done = newtune("upload", config, "--to", "me/adapter", "--private")
    assert done.exit_code == 0, done.output
    assert mine.repos["model", "me/adapter"].private
    assert "a path of this machine" in caplog.text
    base = AutoModelForCausalLM.from_pretrained(config.parent / "base")
    local = PeftModel.from_pretrained(base, config.parent / "run")
    expected = logits(local)
    base = AutoModelForCausalLM.from_pretrained(config.parent / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(base, "me/adapter")), expected)
    tokenizer = AutoTokenizer.from_pretrained("me/adapter")
    assert (
        tokenizer.chat_template
        == AutoTokenizer.from_pretrained(config.parent / "run").chat_template
    )
    card = mine.files("me/adapter")["README.md"].decode()
    assert 'library_name: "peft"' in card


def test_only_what_a_user_of_the_model_loads_goes_up(config: Path, mine: Hub) -> None:
    newtune("upload", config, "--to", "me/adapter")
    names = set(mine.files("me/adapter"))
    assert names == {
        *(".gitattributes", "README.md", "manifest.json", "chat_template.jinja"),
        *("adapter_config.json", "adapter_model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


def test_the_merged_model_goes_with_its_proof_and_an_earlier_adapter_goes_away(
    config: Path, mine: Hub
) -> None:
    newtune("upload", config, "--to", "me/model")
    done = newtune("upload", config.parent / "run", "--merged", "--to", "me/model")
    assert done.exit_code == 0, done.output
    files = mine.files("me/model")
    assert json.loads(files["verification.json"])["passed"] is True
    assert "adapter_config.json" not in files
    assert "## Proof of the merge" in files["README.md"].decode()
    local = AutoModelForCausalLM.from_pretrained(config.parent / "run" / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("me/model")), logits(local))
    assert len(mine.titles("me/model")) == 3  # one change each


def test_a_branch_is_made_and_main_stays_as_it_is(config: Path, mine: Hub) -> None:
    done = newtune("upload", config.parent / "run" / "merged", "--to", "me/m", "--revision", "v2")
    assert done.exit_code == 0, done.output
    assert set(mine.files("me/m")) == {".gitattributes"}
    assert "model.safetensors" in mine.files("me/m", "v2")
    assert newtune("upload", config, "--to", "mine-by-default").exit_code == 0
    assert "adapter_config.json" in mine.files("me/mine-by-default")


def test_a_dry_run_lists_files_and_sizes_and_asks_no_hub(config: Path, hub: Hub) -> None:
    done = newtune("upload", config, "--to", "me/adapter", "--dry-run")
    assert done.exit_code == 0, done.output
    size = (config.parent / "run" / "adapter_model.safetensors").stat().st_size
    assert f"adapter_model.safetensors {size / 1000:.1f} kB" in " ".join(done.output.split())
    assert "the adapter → me/adapter" in done.output
    assert hub.requests == []


def test_a_merged_model_that_failed_or_has_no_proof_is_refused(
    config: Path, mine: Hub, tmp_path: Path
) -> None:
    proof = config.parent / "run" / "merged" / "verification.json"
    text = proof.read_text()
    try:
        proof.write_text(text.replace('"passed": true', '"passed": false'))
        failed = newtune("upload", config, "--merged", "--to", "me/model")
        proof.unlink()
        missing = newtune("upload", config, "--merged", "--to", "me/model")
    finally:
        proof.write_text(text)
    assert (failed.exit_code, missing.exit_code) == (2, 2)
    assert "failed its verification" in failed.output
    assert "newtune merge" in missing.output
    assert not mine.repos


def test_weights_that_were_changed_since_are_refused(config: Path, mine: Hub) -> None:
    weights = config.parent / "run" / "merged" / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done = newtune("upload", config, "--merged", "--to", "me/model")
    finally:
        weights.write_bytes(content)
    assert done.exit_code == 2
    assert "model.safetensors" in done.output
    assert not mine.repos


@pytest.mark.parametrize(
    ("token", "target", "said"),
    [
        (None, "me/model", "hf auth login"),
        ("hf_unknown_token_1234", "me/model", "does not know"),
        (SECRET, "someone/model", "don't have the rights to create or change someone/model"),
        ("hf_reader_token_12345", "me/there", "don't have the rights"),
        (SECRET, "a b/c", "no hub id"),
    ],
)
def test_who_may_not_write_is_told_before_anything_goes(
    config: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, token, target, said
) -> None:
    hub.add_user("me", SECRET)
    hub.add_user("me", "hf_reader_token_12345", read_only=True)
    hub.add("me/there", {"README.md": b"old"})
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = newtune("upload", config, "--to", target)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert token is None or token not in done.output
    assert not hub.asked("/lfs/|/commit/")


def test_without_a_target_it_asks_for_one(config: Path) -> None:
    done = newtune("upload", config)
    assert done.exit_code == 2
    assert "--to OWNER/NAME" in done.output


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = newtune("upload", tmp_path, "--to", "me/model")
    assert done.exit_code == 2
    assert "newtune.yaml" in done.output
