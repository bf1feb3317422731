"""Print with rich what was counted of every dataset."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newtune.data.inspect.visible import safe

if TYPE_CHECKING:
    from newtune.data.counts import DatasetCounts
    from newtune.data.prepare import PreparedData
    from newtune.data.stream.prepare import StreamedData


def show_counts(counts: Sequence["DatasetCounts"]) -> None:
    """Print a table of what was read, dropped and kept, and why rows were dropped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("dataset", overflow="fold")
    for heading in ("rows", "dropped", "cut off", "examples", "tokens", "trained", "median", "max"):
        table.add_column(heading, justify="right")
    for count in counts:
        trained = count.trained_tokens / count.tokens if count.tokens else 0.0
        table.add_row(
            Text(safe(count.name)),
            f"{count.rows_read:,}",
            f"{count.rows_dropped:,}",
            f"{count.rows_truncated:,}",
            f"{count.examples:,}",
            f"{count.tokens:,}",
            f"{trained:.0%}",
            *(str(count.length_percentiles.get(share, "–")) for share in (50, 100)),
        )
    console = Console(highlight=False)
    console.print(table)
    for count in counts:
        for line in (*_duplicates(count), *_share(count)):
            console.print(Text(safe(line)), soft_wrap=True)
        for dropped in count.dropped:
            line = f"dropped {dropped.rows:,}: {dropped.reason} (first: {dropped.examples[0]})"
            console.print(Text(safe(line), style="yellow"), soft_wrap=True)


def _duplicates(count: "DatasetCounts") -> Iterator[str]:
    if count.duplicates:
        yield f"{count.name}: {count.duplicates:,} examples left out that occurred before"


def _share(count: "DatasetCounts") -> Iterator[str]:
    mixed = count.mixed
    if mixed:
        yield (
            f"{count.name}: {mixed.examples:,} examples an epoch, {mixed.row_share:.1%} of its "
            f"rows and {mixed.token_share:.1%} of its tokens"
        )


def show_totals(data: "PreparedData | StreamedData") -> None:
    """Print how the examples are split and packed, and where the result lies."""
    facts = data.facts
    held_out = f", {facts.eval_examples:,} held out" if facts.eval_examples else ""
    if facts.streamed:
        said = f"a stream, counted as far as it was read for what is shown{held_out}"
        Console(highlight=False).print(Text(said), soft_wrap=True)
        return
    lines = [f"{facts.train_examples:,} examples to train{held_out}"]
    if facts.packing_efficiency is not None:
        packs = facts.packs_in_epoch(0)
        lines.append(
            f"{packs:,} pack{'' if packs == 1 else 's'} of {data.packing.sequence_len:,} tokens, "
            f"{facts.packing_efficiency:.1%} full"
        )
    data = cast("PreparedData", data)
    state = "as cached in" if data.from_cache else "written to"
    lines.append(f"{state} {data.folder}")
    Console(highlight=False).print(Text(safe("\n".join(lines))), soft_wrap=True)


def show_dropped(counts: Sequence["DatasetCounts"], limit: int | None = None) -> None:
    """List the rows that were left out, by reason, at most `limit` of each."""
    console = Console(highlight=False)
    dropped_rows = sum(count.rows_dropped for count in counts)
    if not dropped_rows:
        console.print("No row was dropped.")
        return
    rows_read = sum(count.rows_read for count in counts)
    console.print(f"{dropped_rows:,} of {rows_read:,} rows were dropped.")
    for count in counts:
        for dropped in count.dropped:
            head = f"{count.name}: {dropped.reason}: {dropped.rows:,} rows"
            console.print(Text(safe(head), style="bold"), soft_wrap=True)
            places = dropped.examples[:limit]
            for place in places:
                console.print(Text(safe(f"  {place}")), soft_wrap=True)
            more = dropped.rows - len(places)
            if more:
                console.print(f"  ... and {more:,} more")


def show_page_written(path: Path, shown: str) -> None:
    """Say where the page lies and what is on it."""
    Console(highlight=False).print(Text(safe(f"wrote {path}: {shown}")), soft_wrap=True)


def show_machine_json(value: Any) -> None:
    """Print JSON in ASCII, for other programs."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
