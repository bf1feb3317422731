"""A checkpoint in parts → a model or adapter in safetensors, with one file's tensors in memory."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from newtune.errors import ExportError
from newtune.model.facts import model_builder
from newtune.model.shards import FOLDER, METADATA, MODEL, Shards, is_sharded
from newtune.outputs.save import (
    ADAPTER_CONFIG,
    Kind,
    Manifest,
    Written,
    require_whole_model,
    write_manifest,
)
from newtune.outputs.shards import ShardWriter
from newtune.outputs.staging import move_files, require_space, staging_folder
from newtune.run_dir import ADAPTER_WEIGHTS, MANIFEST, RunDir

MOST_BYTES = 2_000_000_000
"""Of a file that is written: the most that is in memory."""
OF_THE_RUN = (
    *("*.pt", "*.pth", "*.safetensors", "trainer_state.json", "newtune_state.json"),
    *("*.distcp", METADATA, MANIFEST),
)
"""Files of a checkpoint that only a resumed run reads."""


@dataclass(frozen=True)
class Consolidated:
    """What was put together."""

    source: Path
    folder: Path
    manifest: Manifest
    tensors: int


def sharded_checkpoint(path: Path) -> Path:
    """Return the checkpoint that is meant: itself, or the newest of a run that is in parts.

    Raises:
        ExportError: there is none; with the remedy where it needs none.
    """
    if is_sharded(path) or (path / METADATA).is_file():
        return path
    checkpoints = RunDir(path).checkpoints()
    if found := [checkpoint for checkpoint in checkpoints if is_sharded(checkpoint)]:
        return found[-1]
    whole = [path, *checkpoints]
    if any(any(folder.glob("*.safetensors")) for folder in whole):
        raise ExportError(
            f"{path} holds no checkpoint in parts: its weights are whole already (safetensors). "
            "Checkpoints are in parts with `fsdp_config: {state_dict_type: SHARDED_STATE_DICT}`."
        )
    raise ExportError(f"{path} holds no checkpoint in parts (a folder `{FOLDER}`)")


def consolidate(checkpoint: Path, to: Path, *, most_bytes: int = MOST_BYTES) -> Consolidated:
    """Write the weights of a checkpoint in parts as an ordinary model or adapter.

    Raises:
        ExportError: parts are missing, no room, or what was written is not whole.
        ModelError: a part cannot be read.
    """
    shards = Shards.of(checkpoint) if is_sharded(checkpoint) else Shards(checkpoint)
    names = [name for name in shards.tensors if name.startswith(MODEL)]
    if faults := list(shards.faults({})):
        raise ExportError(f"{checkpoint} is not whole: {'; '.join(faults[:4])}")
    if not names:
        raise ExportError(f"{checkpoint} holds no weights (tensors named `{MODEL}...`)")
    require_space(to, sum(map(shards.bytes_of, names)))
    with staging_folder(to) as stage:
        _copy_configuration(checkpoint, stage)
        is_adapter = (stage / ADAPTER_CONFIG).is_file()
        kind: Kind = "adapter" if is_adapter else "model"
        write = _write_adapter if is_adapter else _write_model
        manifest = write_manifest(stage, kind, write(shards, names, stage, most_bytes))
        move_files(stage, to, last=MANIFEST)
    return Consolidated(checkpoint, to, manifest, len(names))


def _copy_configuration(checkpoint: Path, stage: Path) -> None:
    """Copy what stands beside the weights: configuration and tokenizer."""
    for path in checkpoint.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in OF_THE_RUN):
            shutil.copyfile(path, stage / path.name)


def _write_model(shards: Shards, names: list[str], stage: Path, most_bytes: int) -> Written:
    writer = ShardWriter(stage, most_bytes)
    for name in names:
        writer.add(name.removeprefix(MODEL), shards.read([name])[name])
    writer.finish()
    dtype = _dtype(shards, names)
    if not (stage / "config.json").is_file():  # of another program's: only the weights are there
        return Written(_parameters(shards, names), dtype)
    architecture = json.loads((stage / "config.json").read_text(encoding="utf-8"))["architectures"]
    return Written(require_whole_model(model_builder(architecture[0]), stage), dtype)


def _write_adapter(shards: Shards, names: list[str], stage: Path, most_bytes: int) -> Written:
    """PEFT reads one file, so an adapter is in memory as a whole."""
    save_file(shards.below(MODEL), stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return Written(_parameters(shards, names), _dtype(shards, names))


def _parameters(shards: Shards, names: list[str]) -> int:
    return sum(shards.tensors[name].size.numel() for name in names)


def _dtype(shards: Shards, names: list[str]) -> str:
    return str(shards.tensors[names[0]].properties.dtype).removeprefix("torch.")
