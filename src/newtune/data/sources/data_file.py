"""One file of rows that lies on this machine, and files that are made from it once."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from newtune.errors import DataError


@dataclass(frozen=True)
class DataFile:
    """A file to read, and the name that messages give it."""

    path: Path
    """Where it can be read: on this machine, unpacked; absolute."""
    name: str
    """What the user calls it: the path or address as configured."""
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds."""
    cache_folder: Path
    """Where files that are made from this one lie."""
    drop_malformed: bool = False
    """Whether rows that cannot be read become `Malformed` ones."""

    @classmethod
    def of(
        cls, path: Path, name: str, cache_folder: Path, *, drop_malformed: bool = False
    ) -> "DataFile":
        """Return the file as it is now."""
        state = path.stat()
        absolute, folder = path.resolve(), cache_folder.absolute()
        return cls(absolute, name, state.st_size, state.st_mtime_ns, folder, drop_malformed)

    def open(self) -> BinaryIO:
        """Open the file to read bytes.

        Raises:
            DataError: it is not the file any more that it was when it was found.
        """
        try:
            file = self.path.open("rb", buffering=1 << 20)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}.") from error
        state = os.fstat(file.fileno())
        if (state.st_size, state.st_mtime_ns) != (self.size, self.modified):
            file.close()
            raise DataError(f"{self.name}: was changed while it was being read. Start again.")
        return file

    def made_once(self, what: str, make: Callable[[Path], None]) -> Path:
        """Return the file that `make` writes from this one; written aside, once, under a lock.

        `what` names the kind of file and its version, for instance `lines-1.index`.
        """
        about = f"{self.path}:{self.size}:{self.modified}:{what}"
        name = f"{hashlib.sha256(about.encode()).hexdigest()[:32]}-{what}"
        made = self.cache_folder / name
        if made.is_file():
            return made
        self.cache_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.cache_folder / f".{name}.lock"):
            if not made.is_file():
                aside = self.cache_folder / f"{name}.partial"
                try:
                    make(aside)
                    aside.rename(made)
                finally:
                    aside.unlink(missing_ok=True)
        return made
