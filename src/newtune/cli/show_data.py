"""Print prepared data with rich: the counts of every dataset, packs, tokens and their masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from newtune.data.counts import DatasetCounts
    from newtune.data.prepare import PreparedData
    from newtune.types import Example

TRAINED = "bold green"
UNTRAINED = "dim"
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def show_counts(counts: Sequence["DatasetCounts"]) -> None:
    """Print a table of what was read, dropped and kept, and why rows were dropped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("dataset", overflow="fold")
    for heading in ("rows", "dropped", "cut off", "examples", "tokens", "trained", "median", "max"):
        table.add_column(heading, justify="right")
    for count in counts:
        share = count.trained_tokens / count.tokens if count.tokens else 0.0
        table.add_row(
            Text(count.name),
            f"{count.rows_read:,}",
            f"{count.rows_dropped:,}",
            f"{count.rows_truncated:,}",
            f"{count.examples:,}",
            f"{count.tokens:,}",
            f"{share:.0%}",
            str(count.length_percentiles.get(50, 0)),
            str(count.length_percentiles.get(100, 0)),
        )
    console = Console(highlight=False)
    console.print(table)
    for count in counts:
        for dropped in count.dropped:
            line = f"dropped {dropped.rows:,}: {dropped.reason} (first: {dropped.examples[0]})"
            console.print(Text(line, style="yellow"), soft_wrap=True)


def show_totals(data: "PreparedData") -> None:
    """Print how the examples are split and packed, and where the result lies."""
    facts = data.facts
    held_out = f", {facts.eval_examples:,} held out" if facts.eval_examples else ""
    lines = [f"{facts.train_examples:,} examples to train{held_out}"]
    if facts.packing_efficiency is not None:
        lines.append(
            f"{facts.packs_in_epoch(0):,} packs of {data.packing.sequence_len:,} tokens, "
            f"{facts.packing_efficiency:.1%} full"
        )
    state = "as cached in" if data.from_cache else "written to"
    lines.append(f"{state} {data.folder}")
    Console(highlight=False).print(Text("\n".join(lines)), soft_wrap=True)


def show_dropped(counts: Sequence["DatasetCounts"]) -> None:
    """List the rows that were left out, by reason; long lists end with how many more there are."""
    console = Console(highlight=False)
    if not any(count.dropped for count in counts):
        console.print("No row was dropped.")
    for count in counts:
        for dropped in count.dropped:
            console.print(Text(f"{dropped.reason}: {dropped.rows:,} rows", style="bold"))
            for place in dropped.examples:
                console.print(Text(f"  {place}"), soft_wrap=True)
            more = dropped.rows - len(dropped.examples)
            if more:
                console.print(f"  ... and {more:,} more")


def show_pack(
    data: "PreparedData", tokenizer: "PreTrainedTokenizerBase", title: str, places: Sequence[int]
) -> None:
    """Print the examples that share a sequence; trained tokens stand out."""
    console = Console(highlight=False)
    tokens = sum(int(data.train.lengths[place]) for place in places)
    console.rule(Text(f"{title}: {tokens:,} tokens, {len(places)} examples"), align="left")
    for place in places:
        example = data.train[place]
        trained = int((example.labels >= 0).sum())
        head = f"{data.place(place)} · {len(example.input_ids)} tokens, {trained} trained"
        console.print(Text(head, style="cyan"), soft_wrap=True)
        console.print(colored(example, tokenizer), soft_wrap=True)


def show_legend() -> None:
    """Say what the colours mean."""
    Console(highlight=False).print(
        Text.assemble(("trained", TRAINED), " · ", ("not trained", UNTRAINED))
    )


def colored(example: "Example", tokenizer: "PreTrainedTokenizerBase") -> Text:
    """Return the text of an example, trained tokens green, the rest dim, controls made visible."""
    text = Text()
    trained = (example.labels >= 0).tolist()
    start = 0
    for end in range(1, len(trained) + 1):
        if end < len(trained) and trained[end] == trained[start]:
            continue
        piece = str(tokenizer.decode(example.input_ids[start:end].tolist()))
        piece = piece.translate(_VISIBLE).replace("\n", "⏎\n")
        text.append(piece, style=TRAINED if trained[start] else UNTRAINED)
        start = end
    return text
