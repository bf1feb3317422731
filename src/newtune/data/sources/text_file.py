"""Text: each line is a row with the column `text`."""

from functools import partial
from typing import Any

from newtune.data.sources.data_file import DataFile
from newtune.data.sources.records import Records, make_index, scan_lines
from newtune.data.sources.rows import Row, RowError, Table


def open_text(file: DataFile, reopen: tuple[Any, ...]) -> Table:
    """Return the lines of a text file, blank ones too."""
    index = make_index(file, partial(scan_lines, blanks=True), "text-lines")
    return Records(file, index, _parse, unit="line", reopen=reopen)


def _parse(content: bytes) -> Row:
    if b"\0" in content:
        raise RowError("holds null bytes; is it a text file, in UTF-8?")
    try:
        return {"text": content.removesuffix(b"\r").decode("utf-8")}
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 at byte {error.start + 1}.") from error
