"""Load the model that a command talks to: of a configuration, or of a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from newtune.config.load import load_config
from newtune.errors import ExportError

if TYPE_CHECKING:
    from newtune.outputs.load import Loaded, Which

CONFIG = "newtune.yaml"


def load(path: Path, overrides: list[str], *, which: "Which | None" = None) -> "Loaded":
    """Return the model of `path`.

    A folder of a run (or its `merged/`) is known by the configuration that the run left there.

    Raises:
        ExportError: the folder is neither a run's nor a model's.
    """
    if path.is_dir() and not any((path / name).is_file() for name in (CONFIG, "config.json")):
        raise ExportError(
            f"{path} is no run's folder (it holds no `{CONFIG}`) and no model's (no `config.json`)."
            " Give the run's `output_dir`, its `merged` folder, or the configuration."
        )
    from newtune.results import load_folder_for_inference, load_for_inference

    if not path.is_dir():
        return load_for_inference(load_config(path, overrides), which=which)
    if (path / CONFIG).is_file():
        config = load_config(path / CONFIG, [*overrides, "--output_dir", str(path)])
        return load_for_inference(config, which=which)
    return load_folder_for_inference(path)
