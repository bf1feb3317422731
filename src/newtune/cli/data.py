"""`newtune data CONFIG`: what is trained, as the trainer gets it: packs, rows, a page, JSON."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

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
    from transformers import PreTrainedTokenizerBase

    from newtune.config.run import RunConfig
    from newtune.data.inspect.batches import Batches, BatchView, ExampleView
    from newtune.data.inspect.rows import RowReading
    from newtune.data.prepare import PreparedData
    from newtune.run import Prepared


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
    if config.is_streamed:
        from newtune.cli.show_stream import show_stream

        if batch or evaluation or row or dropped or dataset or html or as_json:
            raise DataError(
                "The data is streamed: only its first sequences can be shown. Leave out every "
                "option but `--rows`."
            )
        return show_stream(config, rows)
    if row is not None:
        return _row(config, row, dataset, evaluation=evaluation, limit=limit, as_json=as_json)
    if dropped:
        return _dropped(config, dataset, limit, as_json=as_json)
    if html is not None:
        check_target(html, "--html")
    from newtune.run import prepare

    shown = _Run(config, prepare(config), evaluation=evaluation)
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
    show_counts(shown.prepared.data.counts)
    show_totals(cast("PreparedData", shown.prepared.data))
    return 0


class _Run:
    """The micro-batches of a run, prepared and not started."""

    def __init__(self, config: "RunConfig", prepared: "Prepared", *, evaluation: bool) -> None:
        from newtune.run import training_data

        self.config, self.prepared, self.evaluation = config, prepared, evaluation
        feed = training_data(prepared)
        if evaluation and feed.evaluation is None:
            raise DataError("No rows are held out: give `test_datasets` or `val_set_size`.")
        self.batches = cast("Batches", feed.evaluation if evaluation else feed.train)
        self.reading = _reading(config, prepared.tokenizer)

    @property
    def unit(self) -> str:
        """What stands in one sequence."""
        packing = self.prepared.data.packing
        return "pack" if (packing.eval_packed if self.evaluation else packing.packed) else "example"

    def index_of(self, batch: int | None) -> int:
        """Return the place of micro-batch `batch`, which counts from 1; the first for None."""
        if batch is not None and batch > len(self.batches):
            raise DataError(f"There is no micro-batch {batch}: the run has {len(self.batches):,}.")
        return batch - 1 if batch else 0

    def view(self, number: int) -> "BatchView":
        """Read micro-batch `number` (from 0) back from its tensors."""
        from newtune.data.inspect.batches import origins_of, view_batch

        names = [plan.name for plan in self.reading.datasets]
        packs = origins_of(self.batches, number, names)
        texts, turns = self.reading.texts, self.reading.turns
        return view_batch(self.batches[number], number, packs, texts, turns)

    def words(self, number: int) -> str:
        """Say where in the run micro-batch `number` stands."""
        total = len(self.batches)
        if self.evaluation:
            return f"Evaluation batch {number + 1:,} of {total:,}"
        steps = self.prepared.plan.training.steps
        step = f"step {number // steps.accumulation + 1:,} of {steps.total_steps:,}"
        return f"Micro-batch {number + 1:,} of {total:,}, {step}"

    def as_dict(self, views: Sequence["BatchView"]) -> dict[str, object]:
        """Return what `--json` prints."""
        from newtune.data.inspect.plain import batch_as_dict, counts_as_dict

        data = self.prepared.data
        return {
            "data": "eval" if self.evaluation else "train",
            "batches_in_all": len(self.batches),
            "batches": [batch_as_dict(view) for view in views],
            "datasets": [counts_as_dict(count) for count in data.counts],
            "packing_efficiency": data.facts.packing_efficiency,
            "choices": dict(_choices(self.config, self.prepared, self.reading)),
        }


def _show_packs(shown: _Run, wanted: int) -> None:
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
    from itertools import groupby

    for _, members in groupby(examples, lambda example: example.pack):
        yield list(members)


def _page(shown: _Run, path: Path, first: int, most: int) -> int:
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
    data = cast("PreparedData", shown.prepared.data)
    kind = "evaluation batches" if shown.evaluation else "micro-batches"
    words = f"{kind} {first + 1:,} to {first + len(views):,} of {len(shown.batches):,}"
    store = data.evaluation if shown.evaluation and data.evaluation else data.train
    page = Page(
        title=str(shown.config.source or "configuration"),
        figures=list(_figures(shown)),
        choices=list(_choices(shown.config, shown.prepared, shown.reading)),
        counts=data.counts,
        lengths=store.lengths,
        sequence_len=data.packing.sequence_len,
        batches=[(shown.words(view.number), view) for view in views],
        shown=words,
        unit=shown.unit,
    )
    write_text(path, render_page(page))
    show_page_written(path, words)
    return 0


def _figures(shown: _Run) -> Iterator[tuple[str, str]]:
    facts = shown.prepared.data.facts
    yield "examples to train", f"{facts.train_examples:,}"
    yield "held out", f"{facts.eval_examples:,}"
    yield "tokens", f"{facts.tokens:,}"
    yield "trained tokens", f"{facts.trained_tokens / max(facts.tokens, 1):.1%}"
    if facts.packing_efficiency is not None:
        yield "packs an epoch", f"{facts.packs_in_epoch(0):,}"
        yield "packs are full to", f"{facts.packing_efficiency:.1%}"
    yield "steps", f"{shown.prepared.plan.training.steps.total_steps:,}"


def _choices(
    config: "RunConfig", prepared: "Prepared", reading: "RowReading"
) -> Iterator[tuple[str, str]]:
    """Yield what decides about masks and packs: (key, value in words)."""
    data, entries = config.data, [*config.data.datasets, *config.data.test_datasets]
    for number, (entry, plan) in enumerate(zip(entries, reading.datasets, strict=True)):
        options = plan.options
        key = "test_datasets" if plan.held_out else "datasets"
        number -= len(data.datasets) if plan.held_out else 0
        form = entry.type if isinstance(entry.type, str) else "a prompt of one's own"
        said = [f"{plan.name}, type {form if entry.type else 'none (rows of tokens)'}"]
        if options.template is not None:
            name = entry.chat_template or data.chat_template or "tokenizer_default"
            said += [f"chat_template {name}"]
            said += [f"roles_to_train {', '.join(options.roles_to_train) or 'none'}"]
            said += [f"train_on_eos {options.train_on_eos}, train_on_eot {options.train_on_eot}"]
        said += [f"train_on_inputs {'true' if options.train_on_inputs else 'false'}"]
        yield f"{key}.{number}", " · ".join(said)
    packing, plan_ = prepared.data.packing, prepared.plan
    yield "sequence_len", f"{packing.sequence_len:,} tokens"
    yield "sample_packing", "true" if packing.packed else "false"
    layout = "laid end to end" if plan_.training.flatten else "one under the other, padded"
    steps = plan_.training.steps
    yield "micro_batch_size", f"{steps.rows_per_device:,}, sequences {layout}"
    yield "gradient_accumulation_steps", f"{steps.accumulation:,}"
    isolation = "stays inside each example: positions restart at 0, and no mask is needed"
    yield "attention", f"{plan_.model.attention}; it {isolation}"


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
    from newtune.data.inspect.fate import fate_of
    from newtune.data.inspect.plain import row_as_dict
    from newtune.data.prepare import prepare_data
    from newtune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer, config.model)
    reading = _reading(config, tokenizer)
    view = reading.row(_dataset(reading, dataset, evaluation=evaluation), number)
    fate, failure = None, None
    try:
        fate = fate_of(view, prepare_data(config, tokenizer))
    except DataError as error:
        failure = view.error or error
    if as_json:
        show_machine_json(row_as_dict(view, fate or f"preparation stops: {failure}"))
    else:
        show_row(view, fate, limit)
    if failure:
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

    data = prepare_data(config, load_tokenizer(config.tokenizer, config.model))
    counts = data.counts[dataset - 1 : dataset] if dataset else data.counts
    if not counts:
        raise DataError(f"There is no dataset {dataset}: there are {len(data.counts)}.")
    if as_json:
        show_machine_json({"datasets": [counts_as_dict(count, limit) for count in counts]})
    else:
        show_dropped(counts, limit)
    return 0


def _reading(config: "RunConfig", tokenizer: "PreTrainedTokenizerBase") -> "RowReading":
    from newtune.data.inspect.rows import RowReading
    from newtune.data.inspect.token_text import TokenTexts
    from newtune.data.reading import limits_of, plan_datasets
    from newtune.data.tokenize import TextEncoder

    return RowReading(
        plan_datasets(config, tokenizer),
        TextEncoder.from_tokenizer(tokenizer),
        limits_of(config),
        TokenTexts(tokenizer),
    )
