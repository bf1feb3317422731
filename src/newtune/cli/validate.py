"""`newtune validate FILE...`: every problem with file, line and key; nothing heavy is imported."""

from collections.abc import Sequence
from pathlib import Path

from newtune.cli.show import show_error, show_notices, show_valid
from newtune.config.load import load_config
from newtune.config.places import missing_places
from newtune.errors import ConfigError


def run(files: Sequence[Path], overrides: Sequence[str] = ()) -> int:
    """Check each file; 0 if all can be used, else 2.

    A path that is not there is a notice: the file may be meant for another machine.
    """
    code = 0
    for file in files:
        try:
            config = load_config(file, overrides)
        except ConfigError as error:
            show_error(error)
            code = 2
            continue
        notices = [*config.notices, *missing_places(config, file.parent)]
        show_notices(notices)
        show_valid(str(file), len(notices))
    return code
