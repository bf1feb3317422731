"""Whether a file that a command is to write can be written, asked before the work is done."""

import os
from pathlib import Path

from newtune.errors import ExportError


def check_target(path: Path, option: str) -> None:
    """Make the folder of `path`.

    Raises:
        ExportError: `path` is a folder, or nothing can be written where it shall lie.
    """
    if path.is_dir():
        raise ExportError(f"`{option} {path}` is a folder; name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"`{option} {path}`: its folder cannot be made: {error.strerror}."
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"`{option} {path}`: nothing can be written into {path.parent}.")
