"""Read the configuration of a command, and say what was translated in it."""

from pathlib import Path

from newtune.cli.show import show_notices
from newtune.config.load import load_config
from newtune.config.run import RunConfig


def read_config(path: Path, overrides: list[str]) -> RunConfig:
    """Return the configuration of a file with the command line's overrides; print its notices.

    Raises:
        ConfigError: every problem found.
    """
    config = load_config(path, overrides)
    show_notices(config.notices)
    return config
