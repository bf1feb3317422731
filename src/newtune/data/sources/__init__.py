"""Where rows come from: local files and folders, or a hub; read a chunk at a time.

`open.py` finds a source and chooses rows of it, `files.py` which files it has, `rows.py` says what
a table is; each kind of file has a module of its own. Rows keep their number in the source,
counted from 1, so that every message can name one. No file is held in memory: a table knows where
its rows stand in the file, and pickles as the file's path.
"""

from newtune.data.sources.files import Source
from newtune.data.sources.open import open_source
from newtune.data.sources.rows import (
    CHUNK,
    Malformed,
    NumberedRow,
    Row,
    Rows,
    Table,
    TableRow,
)
from newtune.data.sources.split import parse_split

__all__ = [
    "CHUNK",
    "Malformed",
    "NumberedRow",
    "Row",
    "Rows",
    "Source",
    "Table",
    "TableRow",
    "open_source",
    "parse_split",
]
