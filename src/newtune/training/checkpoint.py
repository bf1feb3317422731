"""Checkpoints: written aside, flushed, verified, renamed; found, checked and loaded again.

checkpoint-N/
  adapter_model.safetensors, adapter_config.json   or   model*.safetensors, config.json
  tokenizer files
  optimizer.pt        state by parameter name (`optimizer_state.named_state`)
  sharded/            instead of weights and state, with parts by each process (`shards.py`)
  scheduler.pt, scaler.pt (fp16), rng_state.pth (rng_state_R.pth for each of several processes)
  trainer_state.json  transformers' own: step, epoch, best metric, log history
  newtune_state.json  what our callbacks remember
  manifest.json       written last: step, position in the data, size and SHA-256 of every file

A folder without manifest, or with another name (`checkpoint-N.partial`), is no checkpoint.
"""

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from newtune.errors import ConfigError, ModelError, Problem, TrainingError
from newtune.logs import notice
from newtune.model.relora import has_past, has_rounds, load_rounds, save_rounds
from newtune.model.shards import MODEL, Shards, is_sharded
from newtune.run_dir import CHECKPOINT, MANIFEST, RunDir, write_json

Model = PreTrainedModel | PeftModel

STATE_FILE = "newtune_state.json"
OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"
RNG_FILE = "rng_state.pth"
PARTIAL, REPLACED, PARTS = ".partial", ".replaced", ".parts"
FORMAT = 1


# --- writing


@contextmanager
def written_aside(root: Path, step: int, **facts: Any) -> Iterator[Path]:
    """Hand out a folder to write into; on leaving, seal it and rename it to `checkpoint-<step>`.

    `facts` go to its manifest: `resumable`, the position in the data, ...

    Whatever goes wrong, no half-written folder stays and no earlier checkpoint is touched.

    Raises:
        TrainingError: the disk is full or a file could not be written or read back.
    """
    final, partial = root / f"checkpoint-{step}", root / f"checkpoint-{step}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _seal(partial, {"format": FORMAT, "step": step, **facts})
        _move_into_place(partial, final)
    except (OSError, SafetensorError) as error:
        raise TrainingError(cannot_save(error, root, step)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _seal(folder: Path, facts: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        files[path.relative_to(folder).as_posix()] = _fingerprint(path)
    write_json(folder / MANIFEST, {**facts, "files": files})
    _flush(folder)


def _move_into_place(partial: Path, final: Path) -> None:
    replaced = final.with_name(f"{final.name}{REPLACED}")
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def cannot_save(error: Exception, root: Path, step: int) -> str:
    """Say why a checkpoint was not written, and which one is kept."""
    kept = RunDir(root).checkpoints()
    remains = f"The last complete checkpoint is {kept[-1]}." if kept else "No checkpoint is kept."
    if is_disk_full(error):
        return (
            f"step {step}: the disk of {root} is full ({error}); the checkpoint was not written. "
            f"{remains} "
            "Make room (`save_total_limit` keeps fewer, `save_only_model` smaller ones) and go on "
            "with `--resume`."
        )
    return f"step {step}: the checkpoint could not be written ({error}). {remains}"


def is_disk_full(error: BaseException) -> bool:
    """Tell whether a write failed for lack of room or of quota."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error)


SMALL_FILES_BYTES = 64 << 20
"""Room kept for tokenizer and small files; the largest tokenizers have some 30 MB."""


def bytes_to_write(model: Model, optimizer: Mapping[str, Any] | None) -> int:
    """Return the bytes of a checkpoint's tensors: what is saved of the model, and `named_state`."""
    tensors: list[torch.Tensor] = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad or not isinstance(model, PeftModel)
    ]
    if optimizer is not None:
        states = [value for state in optimizer["state"].values() for value in state.values()]
        tensors += [value for value in states if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def require_room(folder: Path, tensors_bytes: int) -> None:
    """Check the room before writing: `tokenizers` reports a full disk by an error without type.

    Raises:
        OSError: ENOSPC.
    """
    free, needed = shutil.disk_usage(folder).free, tensors_bytes + SMALL_FILES_BYTES
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free"
        )


def write_tensors(path: Path, value: Any) -> None:
    """Write with `torch.save` through a Python file, which reports a full disk as an OSError."""
    with path.open("wb") as file:
        torch.save(value, file)


def save_weights(model: Model, folder: Path) -> None:
    """Write what `from_pretrained` reads: the adapter alone, or the whole model.

    Raises:
        TrainingError: a trained parameter is not in what was written.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(
            str(folder), save_embedding_layers=False, selected_adapters=[model.active_adapter]
        )
    else:
        # names as in memory, so that each parameter is found again whatever the hub calls it
        with _without_progress_bars():
            model.save_pretrained(folder, save_original_format=False)
    _require_all_parameters(model, saved_shapes(folder))
    if isinstance(model, PeftModel) and has_past(model):
        save_rounds(model, folder)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor, from the headers of the safetensors files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def _require_all_parameters(model: Model, saved: Mapping[str, tuple[int, ...]]) -> None:
    named = (
        get_peft_model_state_dict(model, save_embedding_layers=False)
        if isinstance(model, PeftModel)
        else model.state_dict()
    )
    # tied weights are written once, under one of their names
    written = {tensor.data_ptr() for name, tensor in named.items() if name in saved}
    lost = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.data_ptr() not in written
    ]
    wrong = [name for name, shape in saved.items() if tuple(named[name].shape) != shape]
    if lost or wrong:
        raise TrainingError(
            f"parameters that were not saved as they are: {', '.join(lost + wrong)}"
        )


def random_states() -> dict[str, Any]:
    """Return the states of all random generators, in the form that transformers reads."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the global one is what libraries draw from)
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states


def random_state_files(processes: int) -> list[str]:
    """Return the names of the processes' files, by rank."""
    if processes == 1:
        return [RNG_FILE]
    return [RNG_FILE.replace(".", f"_{rank}.") for rank in range(processes)]


def remove_partials(root: Path) -> None:
    """Clear up after a killed process: half-written folders go, a replaced one comes back."""
    for path in root.glob("checkpoint-*"):
        final = path.with_suffix("")
        if path.suffix == REPLACED and not final.exists():
            path.rename(final)
        elif path.suffix in (PARTIAL, REPLACED, PARTS):
            shutil.rmtree(path, ignore_errors=True)


def rotate(root: Path, *, keep: int | None, best_step: int | None) -> None:
    """Remove the oldest checkpoints until `keep` are left, but never the best or the latest."""
    complete = RunDir(root).checkpoints()
    if keep is None:
        return
    best = f"checkpoint-{best_step}"
    removable = [path for path in complete[:-1] if path.name != best]
    for path in removable[: max(0, len(complete) - keep)]:
        shutil.rmtree(path)


# --- reading


def damage_of(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None if every hash agrees."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"{checkpoint} has no {MANIFEST}: it was never completed"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError):
        return f"{manifest} cannot be read"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _fingerprint(path) != expected:
            return f"{path} does not have the SHA-256 it was saved with"
    return None


def intact_checkpoint(asked: Path) -> Path:
    """Return the checkpoint asked for, or if it is damaged the newest intact one before it.

    Damage is named in a notice.

    Raises:
        TrainingError: neither it nor one before it is intact.
    """
    match = CHECKPOINT.fullmatch(asked.name)
    older = _older_than(asked, int(match[1])) if match else []
    damages: list[str] = []
    for checkpoint in [asked, *older]:
        damage = damage_of(checkpoint)
        if damage is None:
            if damages:
                notice(f"resuming from {checkpoint} instead")
            return checkpoint
        damages.append(damage)
        notice(f"damaged checkpoint: {damage}")
    raise TrainingError(f"no intact checkpoint to resume from: {'; '.join(damages)}.")


def _older_than(checkpoint: Path, step: int) -> list[Path]:
    complete: Sequence[Path] = RunDir(checkpoint.parent).checkpoints()
    return [path for path in reversed(complete) if int(path.name.split("-")[1]) < step]


def require_resumable(checkpoint: Path) -> None:
    """Check that a checkpoint holds more than weights.

    Raises:
        TrainingError: it was saved with `save_only_model`.
    """
    if not json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["resumable"]:
        raise TrainingError(
            f"{checkpoint} holds weights only (`save_only_model: true`): a run cannot be resumed "
            "from it. Train on from its weights with `lora_model_dir` or `base_model` instead."
        )


def require_same_rows(checkpoint: Path, rows_per_step: int) -> None:
    """Check that a step takes as many rows as in the run that is resumed.

    Raises:
        ConfigError: it takes others, so that data would be left out or seen twice.
    """
    try:
        before = json.loads((checkpoint / MANIFEST).read_text("utf-8")).get("rows_per_step")
    except (OSError, ValueError):
        return  # damaged: that is answered when it is read
    if before in (None, rows_per_step):
        return
    message = (
        f"a step has {rows_per_step} rows now (micro_batch_size × gradient_accumulation_steps × "
        f"processes), but {before} in the run to resume"
    )
    hint = f"`batch_size: {before}` keeps them the same on any number of processes."
    raise ConfigError([Problem("batch_size", message, hint)])


def load_weights(model: Model, checkpoint: Path) -> None:
    """Load into the model what `save_weights` wrote.

    Raises:
        TrainingError: the checkpoint is of another model: names or shapes differ.
    """
    try:
        weights = _read_weights(checkpoint)
        if isinstance(model, PeftModel) and (has_past(model) or has_rounds(model, weights)):
            load_rounds(model, weights)
            return
        if isinstance(model, PeftModel):
            result: Any = set_peft_model_state_dict(
                model, weights, adapter_name=model.active_adapter
            )
        else:
            result = model.load_state_dict(weights, strict=False)
    except (RuntimeError, KeyError, ModelError) as error:
        raise TrainingError(f"{checkpoint} does not fit this model: {error}") from error
    present = dict(model.named_parameters())
    missing = [name for name in result.missing_keys if _is_trained(present.get(name))]
    if isinstance(model, PreTrainedModel):
        missing = [name for name in missing if not _is_tied(present, name, weights)]
    if missing or result.unexpected_keys:
        names = ", ".join([*missing, *result.unexpected_keys][:6])
        raise TrainingError(f"{checkpoint} does not fit this model: {names}")


def _read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    if is_sharded(checkpoint):
        return Shards.of(checkpoint).below(MODEL)
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def _is_trained(parameter: torch.nn.Parameter | None) -> bool:
    return parameter is not None and parameter.requires_grad


def _is_tied(
    present: Mapping[str, torch.nn.Parameter], name: str, weights: Mapping[str, torch.Tensor]
) -> bool:
    pointer = present[name].data_ptr()
    return any(present[other].data_ptr() == pointer for other in weights if other in present)
