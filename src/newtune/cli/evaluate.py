"""`newtune evaluate CONFIG`: loss and exact match of the result on the held-out rows."""

from pathlib import Path
from typing import TYPE_CHECKING

from newtune.cli.config_file import read_config
from newtune.cli.show_results import show_evaluation

if TYPE_CHECKING:
    from newtune.outputs.load import Which


def run(config_path: Path, overrides: list[str], *, which: "Which | None" = None) -> int:
    """Print the scores of one model: merged, adapter, model or base."""
    config = read_config(config_path, overrides)
    from newtune.results import evaluate

    show_evaluation(evaluate(config, which=which))
    return 0
