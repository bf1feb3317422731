"""The lock of a compiled extension, which a build that was killed leaves behind.

torch waits for such a lock without a word, for ever (`torch.utils.file_baton`). A build holds its
file open, so that one which no process of this machine has open, and which is older than any
build, is nobody's.
"""

import time
from contextlib import suppress
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

from newtune.distributed.world import extensions_folder
from newtune.logs import logger

LOCK = "lock"
LONGEST_BUILD_SECONDS = 900
"""A younger lock may be held where this machine does not see it: in a container, over a network."""


def clear_build_locks(extension: str) -> None:
    """Remove the locks that nobody holds, with a warning; say which one will be waited for."""
    root = extensions_folder() or Path(get_default_build_root())
    for lock in (*root.glob(f"{extension}/{LOCK}"), *root.glob(f"*/{extension}/{LOCK}")):
        logger.warning(_cleared(lock, extension))


def _cleared(lock: Path, extension: str) -> str:
    age = time.time() - lock.stat().st_mtime
    begins = f"{extension} is being compiled, says {lock} ({age / 60:.0f} minutes old)"
    if holders := holders_of(lock):
        return f"{begins}: process {holders[0]} holds it. This one waits."
    if age > LONGEST_BUILD_SECONDS:
        lock.unlink(missing_ok=True)
        return f"{begins}, but no process holds it: a build was killed. It is removed."
    return (
        f"{begins}, but no process of this machine holds it. This one waits: if nobody compiles "
        f"elsewhere, a build was killed. Remove the file then: rm {lock}"
    )


def holders_of(file: Path) -> list[int]:
    """Return the processes of this machine that have a file open, as far as they may be seen."""
    found = set()
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it was closed meanwhile
            if handle.readlink() == file.resolve():
                found.add(int(handle.parts[2]))
    return sorted(found)
