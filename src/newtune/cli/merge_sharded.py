"""`newtune merge-sharded-fsdp-weights CONFIG|FOLDER`: a checkpoint in parts as ordinary weights."""

from pathlib import Path

from newtune.config.load import load_config
from newtune.errors import ExportError


def run(
    path: Path, overrides: list[str], *, to: Path | None = None, overwrite: bool = False
) -> int:
    """Put the newest checkpoint in parts of a run, or the one of that folder, together."""
    from newtune.cli.show_results import show_consolidated
    from newtune.outputs.consolidate import consolidate, sharded_checkpoint
    from newtune.run_dir import CHECKPOINT, MANIFEST

    root = path if path.is_dir() else Path(load_config(path, overrides).output.output_dir)
    checkpoint = sharded_checkpoint(root)
    beside = checkpoint.parent if CHECKPOINT.fullmatch(checkpoint.name) else checkpoint
    folder = to or beside / "consolidated"
    if (folder / MANIFEST).is_file() and not overwrite:
        raise ExportError(f"{folder} holds weights already. Replace them with `--overwrite`.")
    show_consolidated(consolidate(checkpoint, folder))
    return 0
