"""The hub of the tests answers the real clients as the real hub does."""

from pathlib import Path

import huggingface_hub
import pytest
from datasets import load_dataset
from huggingface_hub import CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub_server import Break, Hub
from tiny import save_tiny_checkpoint

ROWS = b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n'


def test_a_model_and_its_tokenizer_load_by_id(hub: Hub, tmp_path):
    hub.add("someone/tiny", save_tiny_checkpoint(tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained("someone/tiny")
    assert model.config.hidden_size == 32
    assert len(AutoTokenizer.from_pretrained("someone/tiny")) == 384


def test_rows_load_by_id_with_split_and_configuration(hub: Hub):
    card = b"""---
configs:
- {config_name: few, data_files: few.jsonl}
- {config_name: all, data_files: rows.jsonl}
---
"""
    files = {"rows.jsonl": ROWS, "few.jsonl": ROWS[:14], "README.md": card}
    hub.add("someone/rows", files, kind="dataset")
    assert load_dataset("someone/rows", "all", split="train[1:]")["text"] == ["b", "c"]
    assert load_dataset("someone/rows", "few", split="train")["text"] == ["a"]


def test_revisions_are_branches_tags_and_commits(hub: Hub):
    first = hub.add("someone/m", {"a.txt": b"1"}, tag="v1").commits[-1]
    hub.add("someone/m", {"a.txt": b"2"})
    hub.add("someone/m", {"a.txt": b"3"}, branch="dev")
    contents = {
        revision: Path(hf_hub_download("someone/m", "a.txt", revision=revision)).read_text()
        for revision in ("v1", "main", "dev", first.id)
    }
    assert contents == {"v1": "1", "main": "2", "dev": "3", first.id: "1"}
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("someone/m", "a.txt", revision="v9")


def test_private_gated_and_missing_repositories_are_refused_as_the_hub_does(hub: Hub):
    hub.add("me/private", {"a.txt": b"1"}, private=True)
    hub.add("someone/gated", {"a.txt": b"1"}, gated=True)
    token = hub.add_user("me", "hf_mine")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/private", "a.txt")
    assert hf_hub_download("me/private", "a.txt", token=token)
    for given in (None, token):
        with pytest.raises(GatedRepoError):
            hf_hub_download("someone/gated", "a.txt", token=given)
    hub.readers["someone/gated"] = {"me"}
    assert hf_hub_download("someone/gated", "a.txt", token=token)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("someone/nothing", "a.txt")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi().whoami(token="hf_wrong")
    assert HfApi().whoami(token=token)["name"] == "me"


def test_uploads_go_through_lfs_or_not_and_come_back(hub: Hub, tmp_path):
    token = hub.add_user("me", "hf_mine")
    folder = tmp_path / "up"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 5000)
    (folder / "sub" / "note.txt").write_text("hello")
    api = HfApi(token=token)
    api.create_repo("me/new", private=True, exist_ok=True)
    api.create_repo("me/new", private=True, exist_ok=True)
    api.create_branch("me/new", branch="v2", exist_ok=True)
    api.upload_folder(repo_id="me/new", folder_path=folder, revision="v2", commit_message="up")
    assert dict(hub.files("me/new", "v2"))["sub/note.txt"] == b"hello"
    assert set(hub.files("me/new")) == {".gitattributes"}
    back = snapshot_download("me/new", revision="v2", token=token)
    assert Path(back, "model.safetensors").read_bytes() == b"x" * 5000
    assert len(hub.asked("/lfs/", "PUT")) == 1
    delete = [CommitOperationDelete("sub/", is_folder=True)]
    api.create_commit("me/new", delete, commit_message="less", revision="v2")
    assert "sub/note.txt" not in hub.files("me/new", "v2")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("someone/else")


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub: Hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("someone/m", {"model.safetensors": bytes(range(256)) * 40})
    hub.breaks.append(Break("/lfs/", after=1000))
    path = hf_hub_download("someone/m", "model.safetensors")
    assert Path(path).read_bytes() == bytes(range(256)) * 40
    assert len(hub.asked("/lfs/", "GET")) == 2


def test_without_a_hub_nothing_is_reached():
    assert huggingface_hub.constants.ENDPOINT.startswith("http://127.0.0.1:")
