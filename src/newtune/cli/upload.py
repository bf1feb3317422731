"""`newtune upload CONFIG|FOLDER`: publish the adapter, the model, or the proven merged model."""

from pathlib import Path
from typing import TYPE_CHECKING

from newtune.cli.loading import CONFIG
from newtune.cli.show_upload import show_listing, show_uploaded
from newtune.config.load import load_config
from newtune.errors import ConfigError, ExportError, Problem

if TYPE_CHECKING:
    from newtune.config.run import RunConfig


def run(
    path: Path,
    overrides: list[str],
    *,
    merged: bool = False,
    adapter: bool = False,
    to: str | None = None,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> int:
    """Check what there is, list it, and upload it unless `dry_run`."""
    if path.is_dir() and path.name == "merged" and (path.parent / CONFIG).is_file():
        path, merged = path.parent, not adapter
    config = _config(path, overrides)
    target = to or config.output.hub_model_id
    if target is None:
        said = "is not given, and `--to` is neither: where does the upload go?"
        raise ConfigError([Problem("hub_model_id", said, "newtune upload ... --to OWNER/NAME")])
    from newtune.outputs.publish import open_repository
    from newtune.outputs.result_files import result_kind
    from newtune.outputs.upload import collect_result, upload_result
    from newtune.run_dir import RunDir

    run_dir = RunDir(Path(config.output.output_dir))
    result = collect_result(run_dir, result_kind(run_dir, merged=merged, adapter=adapter))
    branch = revision or config.output.hub_revision
    show_listing(result, target, branch)
    if dry_run:
        return 0
    repository = open_repository(
        target,
        asked_by="`newtune upload`",
        private=private or bool(config.output.hub_private_repo),
        revision=branch,
    )
    show_uploaded(upload_result(repository, result))
    return 0


def _config(path: Path, overrides: list[str]) -> "RunConfig":
    """Return the configuration of a run, given as its file or as its folder."""
    if not path.is_dir():
        return load_config(path, overrides)
    if not (path / CONFIG).is_file():
        raise ExportError(
            f"{path} is no run's folder: it holds no `{CONFIG}`. Give the run's `output_dir` or "
            "its configuration."
        )
    return load_config(path / CONFIG, [*overrides, "--output_dir", str(path)])
