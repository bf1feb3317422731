"""Print what an export wrote."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newtune.data.inspect.visible import safe

if TYPE_CHECKING:
    from newtune.outputs.export.gguf_file import Exported


def show_exported(exported: "Exported") -> None:
    """Print the file, what it holds, and how far it is from the folder."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("written", Text(safe(str(exported.file))))
    size = f"{exported.size_bytes / 1e9:.2f} GB, {exported.tensors} tensors, {exported.dtype}"
    table.add_row("holds", f"{exported.architecture}, {size}")
    table.add_row(
        "read back",
        f"largest difference {exported.largest_difference:.2g} of the largest value in its block",
    )
    Console().print(table)
