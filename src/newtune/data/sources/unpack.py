"""Compressed files, unpacked once into the cache."""

import bz2
import gzip
import lzma
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from newtune.data.sources.data_file import DataFile
from newtune.data.sources.kinds import compression_of
from newtune.errors import DataError

PIECE = 1 << 20


def _open_zstandard(file: BinaryIO) -> Any:
    # the reader that comes with pyarrow: no package of its own is needed
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


OPENERS: Mapping[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "Zstandard": _open_zstandard,
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


def unpack(file: DataFile) -> DataFile:
    """Return the file itself, or what is in it if its name says that it is compressed.

    Raises:
        DataError: the file is not what its name says, or not whole.
    """
    compression = compression_of(file.path.name)
    if compression is None:
        return file

    def write(path: Path) -> None:
        try:
            with (
                file.open() as packed,
                closing(OPENERS[compression](packed)) as content,
                path.open("wb") as unpacked,
            ):
                shutil.copyfileobj(content, unpacked, PIECE)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{file.name}: not a whole {compression} file: {error}") from error

    path = file.made_once("unpacked", write)
    state = path.stat()
    return replace(file, path=path, size=state.st_size, modified=state.st_mtime_ns)
