"""Print plans and the results of runs, with rich."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newtune.data.inspect.visible import safe

if TYPE_CHECKING:
    from newtune.outputs.report import RunReport
    from newtune.plan.parts import Plan

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 64
CURVE_ROWS = 8


def show_plan(plan: "Plan", console: Console | None = None) -> None:
    """Print every derived number with its reason."""
    console = console or Console()
    table = Table(title="Plan", title_justify="left", show_lines=False, expand=False)
    table.add_column("what", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("why", overflow="fold", style="dim")
    for name, value in plan_lines(plan):
        table.add_row(name, Text(safe(_brief(value))), Text(safe(plan.reasons.get(name, ""))))
    console.print(table)
    for text in plan.notices:
        console.print(Text.assemble(("notice", "yellow"), " ", safe(text)), soft_wrap=True)


def plan_lines(plan: "Plan") -> Iterable[tuple[str, Any]]:
    """Yield (dotted name, value) for what a person wants to know of a plan, in reading order."""
    facts, data, steps = plan.model_facts, plan.data_facts, plan.training.steps
    yield "model", f"{plan.model.source} ({facts.architecture}, {facts.parameters:,} parameters)"
    yield "model.device", plan.model.device
    if plan.model.placement is not None:
        yield "model.placement", plan.model.placement.devices
    yield "model.precision", _precision(plan)
    yield "model.attention", plan.model.attention
    yield "model.gradient_checkpointing", plan.model.gradient_checkpointing
    if plan.adapter is None:
        yield "adapter", "none"
    else:
        yield "adapter", f"LoRA r={plan.adapter.rank} alpha={plan.adapter.alpha:g}"
        yield "adapter.target_modules", plan.adapter.target_modules
    yield "trainable_parameters", plan.trainable_parameters
    if data.streamed:
        yield "data", f"a stream of unknown length, {data.eval_examples:,} examples held out"
    else:
        yield "data", f"{data.train_examples:,} examples, {data.eval_examples:,} held out"
        yield "data.tokens", f"{data.tokens:,}, {data.trained_tokens:,} of them trained"
    if data.packing_efficiency is not None:
        yield "data.packing_efficiency", f"{data.packing_efficiency:.2%}"
    yield "training.steps.rows_per_device", steps.rows_per_device
    yield "training.steps.accumulation", steps.accumulation
    yield "training.steps.rows_per_step", steps.rows_per_step
    yield "tokens_per_step", f"{plan.tokens_per_step:,.0f}"
    yield "training.steps.total_steps", steps.total_steps
    yield from _training_lines(plan)
    yield "output.folder", plan.output.folder
    if plan.output.hub is not None:
        yield "output.hub", plan.output.hub.model_id
    if plan.output.dataset_hub is not None:
        yield "output.dataset_hub", plan.output.dataset_hub.model_id


def _training_lines(plan: "Plan") -> Iterable[tuple[str, Any]]:
    training = plan.training
    yield (
        "training.optimizer",
        f"{training.optimizer.name}, lr {training.optimizer.learning_rate:g}",
    )
    yield "training.schedule", training.schedule.name
    yield "training.schedule.warmup_steps", training.schedule.warmup_steps
    yield "training.logging_steps", training.logging_steps
    yield "training.evaluation.at_steps", sorted(training.evaluation.at_steps)
    yield "training.save.at_steps", sorted(training.save.at_steps)
    yield "training.trackers", ", ".join(training.trackers.names) or "none"


def _precision(plan: "Plan") -> str:
    precision = plan.model.precision
    if precision.autocast is None:
        return precision.trained_weights
    return (
        f"{precision.autocast} autocast; frozen weights {precision.frozen_weights}, "
        f"trained weights {precision.trained_weights}"
    )


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"{', '.join(map(str, value[:6]))}, ... {value[-1]} ({len(value)} in all)"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "never"
    return str(value)


def show_summary(report: "RunReport", config_path: Path, console: Console | None = None) -> None:
    """Print the result of a run: scores, loss curve, speed, memory, where everything lies."""
    console = console or Console(highlight=False)
    console.print()
    for line in loss_curve(report.losses):
        console.print(line)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_lines(report, config_path):
        table.add_row(name, Text(safe(value)))
    console.print(table)


def summary_lines(report: "RunReport", config_path: Path) -> Iterable[tuple[str, str]]:
    """Yield (label, text) of what a person wants to know of a finished run."""
    if report.exact_match_after is not None:
        before = report.exact_match_before
        change = "" if before is None else f"{before:.1%} before → "
        yield (
            "exact match",
            f"{change}{report.exact_match_after:.1%} after, "
            f"on {report.exact_match_rows} held-out rows",
        )
    if report.eval_losses:
        first, last = report.eval_losses[0], report.eval_losses[-1]
        text = f"{last[1]:.4f} at step {last[0]}"
        yield "held-out loss", text if first == last else f"{first[1]:.4f} → {text}"
    if report.losses:
        yield "training loss", f"{report.losses[0][1]:.4f} → {report.losses[-1][1]:.4f}"
    yield "steps", f"{report.steps} in {report.training_seconds:,.0f} s"
    yield "speed", f"{report.tokens_per_second:,.0f} tokens/s"
    yield "peak memory", f"{report.peak_memory_bytes / 1e9:.1f} GB"
    share = report.trainable_parameters / report.parameters
    yield "trained", f"{report.trainable_parameters:,} parameters ({share:.2%} of the base's)"
    yield report.kind, str(report.folder)
    yield "metrics", str(report.folder / "metrics.jsonl")
    if report.kind == "adapter":
        yield "next", f"newtune merge {config_path}"
    yield "chat", f"newtune chat {config_path}"


def loss_curve(losses: Sequence[tuple[int, float]]) -> list[str]:
    """Return a plot of (step, loss) as lines of text, a column per group of steps."""
    if len(losses) < 2:
        return []
    means = _column_means([loss for _, loss in losses], CURVE_WIDTH)
    low, high = min(means), max(means)
    scale = (high - low) or 1.0
    eighths = [round((mean - low) / scale * (CURVE_ROWS * 8 - 1)) + 1 for mean in means]
    lines = []
    for row in reversed(range(CURVE_ROWS)):
        cells = "".join(_cell(height - row * 8) for height in eighths)
        label = {CURVE_ROWS - 1: f"{high:7.3f}", 0: f"{low:7.3f}"}.get(row, " " * 7)
        lines.append(f"{label} │{cells}")
    first, last = losses[0][0], losses[-1][0]
    lines.append(f"   loss └{'─' * len(means)}")
    lines.append(
        f"         step {first}{str(last).rjust(max(1, len(means) - 5 - len(str(first))))}"
    )
    return lines


def _cell(eighths: int) -> str:
    if eighths <= 0:
        return " "
    return BLOCKS[min(eighths, 8) - 1]


def _column_means(values: Sequence[float], width: int) -> list[float]:
    columns = min(width, len(values))
    bounds = [len(values) * column // columns for column in range(columns + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(bounds)]


def show_json(value: Mapping[str, Any]) -> None:
    """Print a mapping as JSON, for other programs."""
    Console().print_json(data=value)
