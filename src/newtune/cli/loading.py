"""Load the model that a command talks to: of a configuration, or of a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from newtune.config.load import load_config

if TYPE_CHECKING:
    from newtune.outputs.load import Loaded, Which

CONFIG = "newtune.yaml"


def load(path: Path, overrides: list[str], *, which: "Which | None" = None) -> "Loaded":
    """Return the model of `path`.

    A folder of a run (or its `merged/`) is known by the configuration that the run left there.
    """
    from newtune.run import load_folder_for_inference, load_for_inference

    if not path.is_dir():
        return load_for_inference(load_config(path, overrides), which=which)
    if (path / CONFIG).is_file():
        config = load_config(path / CONFIG, [*overrides, "--output_dir", str(path)])
        return load_for_inference(config, which=which)
    return load_folder_for_inference(path)
