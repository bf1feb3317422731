"""A checkpoint in parts becomes ordinary safetensors, with one file's tensors in memory."""

from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from transformers import AutoModelForCausalLM

from newtune.cli import merge_sharded
from newtune.errors import ExportError
from newtune.outputs.consolidate import consolidate, sharded_checkpoint
from newtune.outputs.save import read_manifest
from tiny import tiny_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What a run leaves: the configuration, and the tensors of model and optimizer in parts."""
    model = tiny_model()
    folder = tmp_path / "run" / "checkpoint-3"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    (folder / "trainer_state.json").write_text("{}")
    write(folder / "sharded", {"model": model.state_dict(), "optimizer": {"x": torch.ones(3)}})
    return folder


def write(folder: Path, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)


def test_weights_are_those_of_the_parts(checkpoint: Path, tmp_path: Path) -> None:
    done = consolidate(checkpoint, tmp_path / "whole", most_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert len(files) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    ours, theirs = loaded.state_dict(), tiny_model().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    manifest = read_manifest(tmp_path / "whole")
    assert manifest == done.manifest
    assert (done.manifest.kind, done.manifest.parameters) == ("model", loaded.num_parameters())
    assert "trainer_state.json" not in done.manifest.files


def test_another_programs_folder_gives_its_weights(checkpoint: Path, tmp_path: Path) -> None:
    done = consolidate(checkpoint / "sharded", tmp_path / "whole")
    assert set(done.manifest.files) == {"model.safetensors"}


def test_the_newest_checkpoint_in_parts_is_meant(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text("{}")
    assert sharded_checkpoint(checkpoint.parent) == sharded_checkpoint(checkpoint) == checkpoint


def test_the_command_writes_beside_the_checkpoint(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge_sharded.run(checkpoint, []) == 0
    assert "21 tensors" in capsys.readouterr().out
    assert (checkpoint.parent / "consolidated" / "model.safetensors").is_file()
    with pytest.raises(ExportError, match="Replace them with `--overwrite`"):
        merge_sharded.run(checkpoint, [])


def test_a_part_that_is_cut_off_is_named(checkpoint: Path, tmp_path: Path) -> None:
    part = next((checkpoint / "sharded").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(ExportError, match=f"{part.name} is missing or cut off"):
        consolidate(checkpoint, tmp_path / "whole")
    assert not (tmp_path / "whole" / "manifest.json").exists()


def test_a_folder_without_parts_is_answered(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no checkpoint in parts"):
        sharded_checkpoint(tmp_path)
