"""One row of a source, whatever happened to it: raw, rendered, as tokens, or why it was dropped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from newtune.data.build import EncodedRows, Limits, Origin, RowReader, fit
from newtune.data.counts import Tally
from newtune.data.formats import Format, FormatOptions
from newtune.data.inspect.token_text import TokenText, TokenTexts
from newtune.data.inspect.turns import Turn, turns_of_tokens
from newtune.data.rendered import Drop, Outcome, Rendered
from newtune.data.sources import NumberedRow, Rows
from newtune.data.tokenize import TextEncoder, as_batch
from newtune.errors import DataError
from newtune.types import IGNORE_INDEX


class ReadableDataset(Protocol):
    """A dataset, prepared or streamed, and how its rows are read."""

    @property
    def name(self) -> str:
        """The path."""
        ...

    @property
    def rows(self) -> Rows | None:
        """The rows by number; None where they come over a network, one after the other."""
        ...

    @property
    def options(self) -> FormatOptions:
        """What decides how the rows are read, besides the format's name."""
        ...

    @property
    def held_out(self) -> bool:
        """Whether it is measured on, and not trained."""
        ...

    def reader(self, encoder: TextEncoder) -> RowReader:
        """Return what reads the rows."""
        ...


class TokenView(NamedTuple):
    """One token as the trainer gets it."""

    id: int
    label: int
    """IGNORE_INDEX where it is not trained."""
    position: int
    text: TokenText
    turn: Turn | None = None

    @property
    def trained(self) -> bool:
        """The loss counts it."""
        return self.label != IGNORE_INDEX


@dataclass(frozen=True)
class RowView:
    """A row and what became of it."""

    dataset: int
    """Which dataset of the configuration, from 0, the held-out ones last."""
    name: str
    number: int
    """Row of the source, from 1."""
    place: str
    row: Mapping[str, Any]
    chosen: bool = True
    """`split` and `shards` let it in."""
    text: str | None = None
    """None: there is no text (rows of tokens, dropped rows)."""
    tokens: Sequence[TokenView] = ()
    """All of them, before anything is cut."""
    dropped: str | None = None
    error: DataError | None = None
    """What stops the preparation at this row."""


class RowReading:
    """Reads single rows of the configured datasets the way preparation does."""

    def __init__(
        self,
        datasets: Sequence[ReadableDataset],
        encoder: TextEncoder,
        limits: tuple[Limits, Limits],
        texts: TokenTexts,
    ) -> None:
        self.datasets = datasets
        self.encoder = encoder
        self.limits = limits
        self.texts = texts
        self._view = lru_cache(maxsize=1024)(self._read)

    def row(self, dataset: int, number: int) -> RowView:
        """Return row `number` (from 1) of dataset `dataset` (from 0).

        Raises:
            DataError: there is no such row, or none can be found by its number.
        """
        return self._view(dataset, number)

    def turns(self, dataset: int, number: int, ids: Sequence[int]) -> list[Turn | None]:
        """Return whose turn each token of an example is; the example may be a row cut short."""
        if self._format(dataset).conversation is None or self.datasets[dataset].rows is None:
            return [None] * len(ids)
        tokens = self.row(dataset, number).tokens[: len(ids)]
        same = [token.id for token in tokens] == list(ids)
        return [token.turn for token in tokens] if same else [None] * len(ids)

    def _format(self, dataset: int) -> Format:
        return self.datasets[dataset].reader(self.encoder).format

    def _read(self, dataset: int, number: int) -> RowView:
        plan = self.datasets[dataset]
        if plan.rows is None:
            raise DataError(
                f"{plan.name}: its rows come over the network, one after the other; none is found "
                "by its number. `newtune data CONFIG` shows the first ones."
            )
        row = plan.rows.row(number)
        view = RowView(
            dataset, plan.name, number, row.place, row.row, number - 1 in plan.rows.positions
        )
        try:
            return self._followed(view, self._format(dataset), row)
        except DataError as error:
            return _changed(view, error=error)

    def _followed(self, view: RowView, format: Format, row: NumberedRow) -> RowView:
        outcome = format.read(row)
        if isinstance(outcome, Drop):
            return _changed(view, dropped=outcome.reason)
        batch = (
            self.encoder.encode([outcome]) if isinstance(outcome, Rendered) else as_batch([outcome])
        )
        ids, labels = batch.input_ids.tolist(), batch.labels.tolist()
        turns = self._turns(format, row, outcome, len(ids))
        texts = self.texts.read(ids)
        columns = zip(ids, labels, range(len(ids)), texts, turns, strict=True)
        view = _changed(
            view,
            text=outcome.text if isinstance(outcome, Rendered) else None,
            tokens=tuple(TokenView(*column) for column in columns),
        )
        tally = Tally()
        encoded = EncodedRows(batch, [Origin(row.number, row.place)], (), 0, 0)
        limits = self.limits[self.datasets[view.dataset].held_out]
        try:
            fit(encoded, format, limits, tally)
        except DataError as error:
            return _changed(view, error=error)
        return _changed(view, dropped=next(iter(tally.dropped), None))

    def _turns(
        self, format: Format, row: NumberedRow, outcome: Outcome, count: int
    ) -> list[Turn | None]:
        nobody: list[Turn | None] = [None] * count
        if format.conversation is None or format.chat is None or not isinstance(outcome, Rendered):
            return nobody
        conversation = format.conversation(row)
        if isinstance(conversation, Drop):
            return nobody
        encoding = self.encoder.backend.encode(outcome.text, add_special_tokens=False)
        turns = turns_of_tokens(format.chat, conversation, encoding.offsets)
        opening = len(self.encoder.bos) if outcome.bos else 0
        return (nobody[:opening] + turns + nobody)[:count]


def _changed(view: RowView, **values: Any) -> RowView:
    return RowView(**{**vars(view), **values})
