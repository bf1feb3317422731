"""Print tokens with rich: whole micro-batches, or one row; trained text stands in ⟦brackets⟧."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newtune.data.inspect.visible import safe

if TYPE_CHECKING:
    from newtune.data.inspect.batches import BatchView, ExampleView
    from newtune.data.inspect.rows import RowView, TokenView
    from newtune.data.inspect.turns import Turn

TRAINED = "bold green"
UNTRAINED = "dim"
SPECIAL = "magenta"
OPEN, CLOSE = "⟦", "⟧"
"""Around trained text, so that it can be told without colour too."""
MOST_CHARACTERS = 8_000
"""Longest raw row that is printed whole."""


def show_legend() -> None:
    """Say what the marks and colours mean."""
    Console(highlight=False).print(
        Text.assemble(
            (f"{OPEN}trained{CLOSE}", TRAINED), " · ", ("not trained", UNTRAINED), " · ",
            ("special token", SPECIAL), " · ⏎ newline · ⇥ tab · ⟨e2 80⟩ bytes of no character",
        ),
        soft_wrap=True,
    )  # fmt: skip


def show_batch(batch: "BatchView", heading: str) -> None:
    """Print one micro-batch: its tensors, where attention is cut, every sequence."""
    console = Console(highlight=False)
    rows, length = batch.shape
    console.rule(Text(f"{heading}: tensors of {rows} × {length:,}"), align="left")
    if batch.boundaries is not None:
        cuts = ", ".join(map(str, batch.boundaries))
        console.print(Text(f"attention is cut at {cuts}", style="cyan"), soft_wrap=True)
    for number, sequence in enumerate(batch.sequences, 1):
        if rows > 1:
            console.print(Text(f"sequence {number}", style="bold"))
        show_examples(sequence.examples)


def show_pack(examples: Sequence["ExampleView"], heading: str) -> None:
    """Print the examples of one pack."""
    tokens = sum(len(example.tokens) for example in examples if example.origin)
    count = sum(example.origin is not None for example in examples)
    named = f"{count} example{'' if count == 1 else 's'}"
    Console(highlight=False).rule(Text(f"{heading}: {tokens:,} tokens, {named}"), align="left")
    show_examples(examples)


def show_examples(examples: Iterable["ExampleView"]) -> None:
    """Print examples and padding as they stand in a sequence."""
    console = Console(highlight=False)
    for example in examples:
        if example.origin is None:
            text = f"{len(example.tokens):,} positions of padding, nothing trained"
            console.print(Text(text, style=UNTRAINED))
            continue
        head = (
            f"{example.origin.place} · {len(example.tokens):,} tokens, "
            f"{example.trained:,} trained · position {example.start:,}"
        )
        console.print(Text(safe(head), style="cyan"), soft_wrap=True)
        show_turns(example.turns)


def show_turns(turns: Sequence[tuple["Turn | None", Sequence["TokenView"]]]) -> None:
    """Print tokens as text, turn by turn, with the roles at the left."""
    console = Console(highlight=False)
    names = [safe(turn.role) if turn else "" for turn, _ in turns]
    width = max((len(name) for name in names), default=0)
    for name, (_, tokens) in zip(names, turns, strict=True):
        gutter = f"{name:<{width}} │ " if width else ""
        text = text_of(tokens)
        room = console.width - len(gutter)
        wraps = console.is_terminal and room > 8
        lines = text.wrap(console, room) if wraps else text.split("\n", allow_blank=True)
        for number, line in enumerate(lines):
            if not line.plain and number and number == len(lines) - 1:
                continue
            head = gutter if number == 0 else " " * (len(gutter) - 2) + "│ " if gutter else ""
            console.print(Text.assemble((head, "cyan"), line), soft_wrap=True)


def text_of(tokens: Iterable["TokenView"]) -> Text:
    """Return tokens as text that is safe to print, the trained in brackets."""
    text = Text()
    for trained, run in groupby(tokens, lambda token: token.trained):
        piece = Text(OPEN if trained else "", style=TRAINED if trained else UNTRAINED)
        for token in run:
            shown = "".join(_flowing(token))
            piece.append(shown, style=SPECIAL if token.text.special else "")
        if trained:
            ends_line = piece.plain.endswith("\n")
            if ends_line:
                piece.right_crop(1)
            piece.append(CLOSE + "\n" * ends_line)
        text.append_text(piece)
    return text


def _flowing(token: "TokenView") -> Iterable[str]:
    """Yield a token's parts for running text: characters of several tokens are put together."""
    for part in token.text.parts:
        if part.kind == "newline":
            yield part.shown + "\n"
        elif part.kind == "bytes" and token.text.characters:
            yield safe(part.text)
        else:
            yield part.shown


def show_row(view: "RowView", fate: str | None, limit: int | None) -> None:
    """Print one row: raw, as text, token by token (at most `limit`), and what became of it."""
    console = Console(highlight=False)
    console.rule(Text(safe(f"{view.name}, row {view.number} ({view.place})")), align="left")
    raw = safe(json.dumps(view.row, ensure_ascii=False, indent=2, default=str))
    more = len(raw) - MOST_CHARACTERS if limit else 0
    console.print(Text(raw[:MOST_CHARACTERS] if more > 0 else raw), soft_wrap=True)
    if more > 0:
        console.print(f"... and {more:,} more characters (`--limit 0` shows all)")
    if view.tokens:
        from newtune.data.inspect.turns import runs

        trained = sum(token.trained for token in view.tokens)
        console.rule(Text(f"{len(view.tokens):,} tokens, {trained:,} trained"), align="left")
        spans = runs([token.turn for token in view.tokens])
        show_turns([(turn, view.tokens[start:end]) for turn, start, end in spans])
        _show_token_table(console, view.tokens, limit)
        show_legend()
    if view.dropped and not (fate or "").startswith("dropped"):
        console.print(Text(safe(f"dropped: {view.dropped}"), style="yellow"), soft_wrap=True)
    if fate:
        console.print(Text(safe(fate), style="bold"), soft_wrap=True)


def _show_token_table(console: Console, tokens: Sequence["TokenView"], limit: int | None) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("position", "id", "label"):
        table.add_column(heading, justify="right")
    for heading in ("trained", "turn", "text"):
        table.add_column(heading, overflow="fold")
    for token in tokens[:limit]:
        style = TRAINED if token.trained else UNTRAINED
        turn = f"{token.turn.number} {token.turn.role}" if token.turn else ""
        kind = " (special)" if token.text.special else ""
        of = safe(f" of {token.text.characters}") if token.text.characters else ""
        table.add_row(
            str(token.position), str(token.id), str(token.label),
            Text("yes" if token.trained else "no", style=style), Text(safe(turn)),
            Text(safe(token.text.shown), style=SPECIAL if kind else style) + kind + of,
        )  # fmt: skip
    console.print(table)
    if limit and len(tokens) > limit:
        console.print(f"... and {len(tokens) - limit:,} more tokens (`--limit 0` shows all)")
