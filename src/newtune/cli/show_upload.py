"""Print what goes to a hub, and where it went."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newtune.data.inspect.visible import safe

if TYPE_CHECKING:
    from newtune.outputs.upload import ResultFiles


def show_listing(result: "ResultFiles", target: str, revision: str | None) -> None:
    """Print every file with its size, and the repository."""
    sizes = result.sizes()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for name, size in sizes.items():
        table.add_row(Text(safe(name)), readable_size(size))
    console = Console(highlight=False)
    console.print(table)
    branch = f", branch {revision}" if revision else ""
    total = f"{len(sizes)} files, {readable_size(sum(sizes.values()))}"
    said = f"{total} · the {result.kind} → {target}{branch}"
    console.print(Text(safe(said)), soft_wrap=True)


def show_uploaded(address: str) -> None:
    """Say where the upload can be seen."""
    Console(highlight=False).print(Text(safe(f"uploaded: {address}")), soft_wrap=True)


def readable_size(size: float) -> str:
    """Return bytes as people read them: `1.5 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
