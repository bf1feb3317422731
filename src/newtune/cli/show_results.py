"""Print scores, the proof of a merge, and answers as they come."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newtune.data.inspect.visible import safe

if TYPE_CHECKING:
    from newtune.outputs.consolidate import Consolidated
    from newtune.outputs.load import Loaded
    from newtune.outputs.merge import Merged
    from newtune.results import Evaluation

SHOWN_MISSES = 3


def show_merge(merged: "Merged", config_path: Path) -> None:
    """Print how close the merged model is to base + adapter, and what to do with it."""
    report = merged.report
    table = _pairs()
    named = f"{merged.folder} ({merged.parameters:,} parameters, {report.dtype})"
    table.add_row("merged", Text(safe(named)))
    table.add_row("compared on", f"{report.positions:,} trained tokens of {report.rows} "
                  f"{report.source}")  # fmt: skip
    table.add_row("largest logit difference", f"{report.largest_logit_difference:.3g}")
    table.add_row("KL(adapter‖merged)", f"{report.kl_merged:.3g} nats per token")
    if report.base_rounds_inputs:
        table.add_row("with the base's rounding", f"{report.kl_as_trained:.3g} nats per token: its "
                      f"{report.base_bits}-bit layers round what goes into them")  # fmt: skip
    table.add_row("KL(adapter‖base)", f"{report.kl_base:.3g} nats per token")
    table.add_row("share", f"{report.kl_share:.3%} of what the adapter changes")
    table.add_row("equal greedy tokens", f"{report.equal_greedy:.2%} "
                  f"(base: {report.equal_greedy_base:.2%})")  # fmt: skip
    table.add_row("verdict", "[green]the merged model is what was trained[/]")
    _add_quantized(table, merged)
    table.add_row("next", Text(safe(f"newtune chat {config_path}")))
    Console().print(table)


def show_consolidated(done: "Consolidated") -> None:
    """Print what a checkpoint in parts became."""
    table, manifest = _pairs(), done.manifest
    table.add_row("parts of", Text(safe(str(done.source))))
    table.add_row("written", Text(safe(str(done.folder))))
    holds = f"{manifest.kind}: {manifest.parameters:,} parameters, {manifest.dtype}"
    table.add_row("holds", f"{holds}, {done.tensors} tensors")
    Console().print(table)


def _add_quantized(table: Table, merged: "Merged") -> None:
    loss = merged.quantizing_loss
    if loss is None:
        return
    share = loss.bytes_quantized / loss.bytes_merged
    named = f"{merged.quantized} ({loss.form}, {share:.0%} of the merged model's bytes)"
    table.add_row("quantised", Text(safe(named)))
    table.add_row("KL(merged‖quantised)", f"{loss.kl:.3g} nats per token")
    table.add_row("equal greedy tokens", f"{loss.equal_greedy:.2%} of quantised and merged")


def show_evaluation(result: "Evaluation") -> None:
    """Print loss and exact match of one model, and a few wrong answers."""
    console, table = Console(), _pairs()
    table.add_row("model", Text(safe(f"{result.which}: {result.source}")))
    tokens = int(result.scores["eval_trained_tokens"])
    table.add_row("loss", f"{result.scores['eval_loss']:.4f} nats per token, {tokens:,} tokens")
    table.add_row("perplexity", f"{result.scores['eval_perplexity']:.4g}")
    if result.answers is not None:
        count = len(result.answers.samples)
        table.add_row("exact match", f"{result.answers.exact_match:.1%} of {count} held-out rows")
    console.print(table)
    misses = [s for s in (result.answers.samples if result.answers else ()) if not s.is_exact]
    for sample in misses[:SHOWN_MISSES]:
        console.print()
        console.out(f"  asked    {_short(sample.prompt)}", highlight=False)
        console.out(f"  expected {_short(sample.reference)}", highlight=False)
        console.out(f"  answered {_short(sample.answer)}", highlight=False)


def show_chat_begin(loaded: "Loaded", system: str | None) -> None:
    """Say who answers, what it is told first, and how to end."""
    lines = [f"{loaded.which}: {loaded.source} · /reset forgets · /exit ends"]
    if system:
        origin = "as in training; --system says another" if system == loaded.system else "--system"
        lines.append(f"system: {_short(system)} ({origin})")
    for line in lines:
        Console(highlight=False).print(Text(safe(line), style="dim"), soft_wrap=True)


def show_prompt() -> None:
    """Ask for the next line."""
    Console().print("[bold]> [/]", end="")


def show_answer(pieces: Iterable[str]) -> None:
    """Print an answer as it comes."""
    for piece in pieces:
        sys.stdout.write(safe(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def show_text_lines(texts: Iterable[str]) -> None:
    """Print texts, each on lines of its own."""
    for text in texts:
        Console().out(safe(text), highlight=False)


def _pairs() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _short(text: str, most: int = 160) -> str:
    line = safe(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"
