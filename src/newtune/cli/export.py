"""`newtune export CONFIG|FOLDER --format gguf`: write the result in another program's format."""

from pathlib import Path

from newtune.cli.loading import CONFIG
from newtune.config.load import load_config
from newtune.errors import ExportError, SetupError

FORMATS = ("gguf",)


def run(
    path: Path,
    overrides: list[str],
    *,
    form: str = "gguf",
    dtype: str | None = None,
    to: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Write the merged or whole model of a run, or of a plain folder; print what was written."""
    if form not in FORMATS:
        raise ExportError(f"there is no format `{form}`; there is {', '.join(FORMATS)}.")
    folder, name = _source(path, overrides)
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise SetupError(
            "writing a GGUF file needs the package `gguf`. Install it: pip install 'newtune[gguf]'"
        )
    from newtune.cli.show_export import show_exported
    from newtune.outputs.export.gguf_file import export_gguf
    from newtune.outputs.export.source import choose_dtype

    chosen = choose_dtype(dtype, folder)
    file = to or folder.parent / f"{name}-{chosen}.gguf"
    if file.exists() and not overwrite:
        raise ExportError(f"{file} exists already. Replace it with `--overwrite`.")
    show_exported(export_gguf(folder, file, dtype=chosen, name=name))
    return 0


def _source(path: Path, overrides: list[str]) -> tuple[Path, str]:
    """Return the folder of a whole model, and what to call it."""
    from newtune.outputs.export.source import result_folder
    from newtune.run_dir import RunDir

    if path.is_dir() and not (path / CONFIG).is_file():
        if not (path / "config.json").is_file():
            raise ExportError(f"{path} holds neither a run (`{CONFIG}`) nor a model (config.json)")
        return path, path.resolve().name
    root = path
    if not path.is_dir():
        root = Path(load_config(path, overrides).output.output_dir)
    return result_folder(RunDir(root)), root.resolve().name
