"""`newtune data CONFIG`: what is trained, as the trainer gets it: packs, rows, a page, JSON."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from newtune.cli.config_file import read_config
from newtune.cli.show_data import (
    show_counts,
    show_dropped,
    show_machine_json,
    show_page_written,
    show_totals,
)
from newtune.cli.show_tokens import show_batch, show_legend, show_pack, show_row
from newtune.cli.target import check_target
from newtune.errors import DataError

if TYPE_CHECKING:
    from newtune.cli.shown_run import ShownRun
    from newtune.config.run import RunConfig
    from newtune.data.inspect.batches import BatchView, ExampleView
    from newtune.data.inspect.rows import RowReading


def run(
    config_path: Path,
    overrides: list[str],
    *,
    rows: int = 3,
    batch: int | None = None,
    evaluation: bool = False,
    row: int | None = None,
    dropped: bool = False,
    dataset: int | None = None,
    limit: int | None = None,
    html: Path | None = None,
    batches: int = 4,
    as_json: bool = False,
) -> int:
    """Show packs (or micro-batch `batch`), one row, what was dropped; or write a page.

    `batch`, `row` and `dataset` count from 1; `limit` None prints whole lists.

    Raises:
        DataError: the data cannot be prepared, or holds no such row, dataset or batch.
        ExportError: the page cannot be written there.
    """
    config = read_config(config_path, overrides)
    if row is not None:
        return _row(config, row, dataset, evaluation=evaluation, limit=limit, as_json=as_json)
    if dropped:
        return _dropped(config, dataset, limit, as_json=as_json)
    if html is not None:
        check_target(html, "--html")
    from newtune.cli.shown_run import ShownRun
    from newtune.prepare import prepare

    with closing(ShownRun(config, prepare(config), evaluation=evaluation)) as shown:
        first = shown.index_of(batch)
        if html is not None:
            return _page(shown, html, first, batches)
        if as_json:
            numbers = range(first, min(first + (1 if batch else batches), len(shown.batches)))
            show_machine_json(shown.as_dict([shown.view(number) for number in numbers]))
            return 0
        if batch:
            show_batch(shown.view(first), shown.words(first))
        else:
            _show_packs(shown, rows)
        show_legend()
        show_counts(shown.counts)
        show_totals(shown.prepared.data)
    return 0


def _show_packs(shown: "ShownRun", wanted: int) -> None:
    """Print the first packs (or examples) of the run, read off its micro-batches."""
    number = 0
    for index in range(len(shown.batches)):
        view = shown.view(index)
        packs = [pack for row in view.sequences for pack in _packs(row.examples)]
        for examples in packs[: wanted - number]:
            number += 1
            show_pack(examples, f"{shown.unit} {number}")
        if number >= wanted:
            return


def _packs(examples: Sequence["ExampleView"]) -> Iterator[list["ExampleView"]]:
    for _, members in groupby(examples, lambda example: example.pack):
        yield list(members)


def _page(shown: "ShownRun", path: Path, first: int, most: int) -> int:
    from newtune.data.inspect.page import MOST_TOKENS, Page, render_page
    from newtune.run_dir import write_text

    views: list[BatchView] = []
    positions = 0
    for number in range(first, min(first + most, len(shown.batches))):
        view = shown.view(number)
        positions += view.shape[0] * view.shape[1]
        if views and positions > MOST_TOKENS:
            break
        views.append(view)
    kind = "evaluation batches" if shown.evaluation else "micro-batches"
    words = f"{kind} {first + 1:,} to {first + len(views):,} of {len(shown.batches):,}"
    page = Page(
        title=str(shown.config.source or "configuration"),
        figures=list(shown.figures()),
        choices=list(shown.choices()),
        counts=shown.counts,
        lengths=shown.lengths(views),
        sequence_len=shown.prepared.data.packing.sequence_len,
        batches=[(shown.words(view.number), view) for view in views],
        shown=words,
        unit=shown.unit,
    )
    write_text(path, render_page(page))
    show_page_written(path, words)
    return 0


def _row(
    config: "RunConfig",
    number: int,
    dataset: int | None,
    *,
    evaluation: bool,
    limit: int | None,
    as_json: bool,
) -> int:
    """Show one row; what stops the preparation, if anything, is raised after it was shown."""
    from newtune.cli.shown_run import row_reading
    from newtune.data.inspect.fate import fate_in_stream, fate_of
    from newtune.data.inspect.plain import row_as_dict
    from newtune.data.prepare import prepare_data
    from newtune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer, config.model)
    reading = row_reading(config, tokenizer)
    place = _dataset(reading, dataset, evaluation=evaluation)
    view = reading.row(place, number)
    fate, failure = None, view.error
    try:
        if not config.is_streamed:
            fate = fate_of(view, prepare_data(config, tokenizer))
        elif not failure:
            fate = fate_in_stream(view, held_out=reading.datasets[place].held_out)
    except DataError as error:
        failure = view.error or error
    if as_json:
        show_machine_json(row_as_dict(view, fate or f"preparation stops: {failure}"))
    else:
        show_row(view, fate, limit)
    if fate is None and failure:
        raise failure
    return 0


def _dataset(reading: "RowReading", wanted: int | None, *, evaluation: bool) -> int:
    """Return the place of the dataset that `--dataset` (from 1) means."""
    plans = reading.datasets
    if wanted is not None and wanted <= len(plans):
        return wanted - 1
    held_out = evaluation and any(plan.held_out for plan in plans)
    candidates = [n for n, plan in enumerate(plans) if plan.held_out == held_out]
    if wanted is None and len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{n} ({plan.name})" for n, plan in enumerate(plans, 1))
    raise DataError(
        f"There is no dataset {wanted}: give `--dataset` one of {listed}."
        if wanted
        else f"Which dataset? Give `--dataset` one of {listed}."
    )


def _dropped(config: "RunConfig", dataset: int | None, limit: int | None, *, as_json: bool) -> int:
    from newtune.data.inspect.plain import counts_as_dict
    from newtune.data.prepare import prepare_data
    from newtune.model.tokenizer import load_tokenizer

    if config.is_streamed:
        raise DataError(
            "Rows of a stream are read while the run goes on: what is dropped is in the run's "
            "`data.json`, and why a row is, `--row N` tells. Without `--dropped`, the counts are "
            "those of the micro-batches shown."
        )
    data = prepare_data(config, load_tokenizer(config.tokenizer, config.model))
    counts = data.counts[dataset - 1 : dataset] if dataset else data.counts
    if not counts:
        raise DataError(f"There is no dataset {dataset}: there are {len(data.counts)}.")
    if as_json:
        show_machine_json({"datasets": [counts_as_dict(count, limit) for count in counts]})
    else:
        show_dropped(counts, limit)
    return 0
