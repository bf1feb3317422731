"""Which files of a run's folder are published, once they are known to be whole and proven.

Local paths, data and logs of the run stay on this machine: what goes is what a user of the model
loads, its card, and the proof of a merge.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from newtune.errors import ExportError
from newtune.outputs.card import CARD
from newtune.outputs.save import read_manifest
from newtune.outputs.staging import damaged_files
from newtune.outputs.verify import VERIFICATION
from newtune.run_dir import ADAPTER_WEIGHTS, FULL_WEIGHTS, MANIFEST, RunDir

Published = Literal["adapter", "model", "merged"]

REPLACED = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json"),
    *("adapter_config.json", "config.json", "generation_config.json", MANIFEST, VERIFICATION),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.*", "merges.txt"),
)
"""Files at the root of a repository that belong to one model: left from an earlier one, they would
be loaded with the new one (an `adapter_config.json` beside merged weights, for instance)."""


def result_kind(run_dir: RunDir, *, merged: bool = False, adapter: bool = False) -> Published:
    """Return what is to be published: the merged model if asked for, else what was trained.

    Raises:
        ExportError: the folder does not hold it.
    """
    if merged:
        return "merged"
    if (run_dir.root / ADAPTER_WEIGHTS).is_file():
        return "adapter"
    if any((run_dir.root / name).is_file() for name in FULL_WEIGHTS):
        if adapter:
            raise ExportError(f"{run_dir.root} holds a whole model, not an adapter")
        return "model"
    raise ExportError(f"{run_dir.root} holds no trained weights. Run `newtune train` first.")


def result_files(run_dir: RunDir, kind: Published) -> dict[str, Path]:
    """Return what is published of a run: path in the repository → file.

    Raises:
        ExportError: the result is incomplete or changed, or a merged model is not proven.
    """
    folder = run_dir.merged if kind == "merged" else run_dir.root
    if kind == "merged":
        _require_proof(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ExportError(
            f"{folder} holds no finished result (no {MANIFEST}). Run `newtune "
            f"{'merge' if kind == 'merged' else 'train'}` first."
        )
    damaged = damaged_files(folder, manifest.files)
    if damaged:
        raise ExportError(
            f"{', '.join(damaged[:4])} in {folder} is not what newtune wrote there; nothing was "
            "uploaded"
        )
    if not (folder / CARD).is_file():
        again = "newtune merge --overwrite" if kind == "merged" else "newtune train"
        raise ExportError(f"{folder} has no model card ({CARD}). `{again}` writes it.")
    return {name: folder / name for name in sorted({*manifest.files, MANIFEST, CARD})}


def left_behind(there: Iterable[str], files: Mapping[str, Path]) -> frozenset[str]:
    """Return the paths of a repository that belong to an earlier model and must go."""
    return frozenset(
        name
        for name in there
        if name not in files
        and "/" not in name
        and any(PurePosixPath(name).match(pattern) for pattern in REPLACED)
    )


def _require_proof(merged: Path) -> None:
    proof = merged / VERIFICATION
    if not proof.is_file():
        raise ExportError(
            f"{merged} holds no merged model with its proof ({VERIFICATION}). Run `newtune merge` "
            "first."
        )
    if not json.loads(proof.read_text(encoding="utf-8"))["passed"]:
        raise ExportError(
            f"{merged} failed its verification ({VERIFICATION}): it is not what was trained, and "
            "is not uploaded. Merge again with another `--dtype`."
        )
