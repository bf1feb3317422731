"""Raw text, exact segments, and rows that are tokens already."""

from typing import Any

from newtune.data.formats.options import Format, FormatOptions, text_of
from newtune.data.rendered import Drop, Outcome, Rendered, Span, Tokens, trained_text
from newtune.data.sources import NumberedRow
from newtune.errors import DataError
from newtune.types import IGNORE_INDEX

MOST_IDS = 2**31
"""Ids are kept in 32 bits."""


def completion(options: FormatOptions) -> Format:
    """Return the format of raw text: every token trained, long documents cut, nothing lost."""
    column = options.text_field or "text"

    def read(row: NumberedRow) -> Outcome:
        text = text_of(row, column)
        if not text:
            return Drop(f"`{column}` is empty")
        return Rendered(text, [Span(0, len(text))], bos=True, eos="trained")

    return Format(read, cut=True)


def input_output(options: FormatOptions) -> Format:
    """Return the format of exact segments; no token is added, `label` decides what is trained."""

    def read(row: NumberedRow) -> Outcome:
        segments = row.row.get("segments")
        if not isinstance(segments, list):
            raise _wrong(row, "segments", "a list of {text, label}", segments)
        parts = [_segment(row, place, segment) for place, segment in enumerate(segments, 1)]
        text, spans = trained_text(
            *((text, trained or options.train_on_inputs) for text, trained in parts)
        )
        return Rendered(text, spans) if text else Drop("`segments` are empty")

    return Format(read)


def _segment(row: NumberedRow, place: int, segment: Any) -> tuple[str, bool]:
    if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
        raise _wrong(row, f"segments[{place}]", "{text, label}", segment)
    label = segment.get("label")
    if not isinstance(label, bool):
        raise _wrong(row, f"segments[{place}].label", "true or false", label)
    return segment["text"], label


def tokenized(options: FormatOptions) -> Format:
    """Return the format of rows with `input_ids`, `labels` and perhaps an `attention_mask`."""

    def read(row: NumberedRow) -> Outcome:
        ids = _integers(row, "input_ids")
        _require_known(row, ids, options.vocabulary)
        labels = _integers(row, "labels") if "labels" in row.row else list(ids)
        mask = _integers(row, "attention_mask") if "attention_mask" in row.row else [1] * len(ids)
        if not len(ids) == len(labels) == len(mask):
            raise DataError(
                f"{row.place}: {len(ids)} `input_ids`, {len(labels)} `labels`, {len(mask)} of "
                "`attention_mask`; they must be as many."
            )
        for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
            if label not in (token, IGNORE_INDEX):
                raise DataError(
                    f"{row.place}: label {label} at position {place} is neither the token there "
                    f"({token}) nor {IGNORE_INDEX}. Labels are not shifted."
                )
        kept = [place for place, value in enumerate(mask) if value]
        if not kept:
            return Drop("`input_ids` is empty")
        return Tokens([ids[place] for place in kept], [labels[place] for place in kept])

    return Format(read)


def _require_known(row: NumberedRow, ids: list[int], vocabulary: int | None) -> None:
    """Refuse ids that no model has, or that the tokenizer does not."""
    limit = MOST_IDS if vocabulary is None else vocabulary
    unknown = next((token for token in ids if not 0 <= token < limit), None)
    if unknown is not None:
        raise DataError(
            f"{row.place}: `input_ids` holds {unknown}, and the tokenizer's ids are 0 to "
            f"{limit - 1}. Was another tokenizer used?"
        )


def _integers(row: NumberedRow, column: str) -> list[int]:
    values = row.row.get(column)
    if column not in row.row:
        has = ", ".join(f"`{name}`" for name in row.row)
        raise DataError(
            f"{row.place}: no field `{column}`; the row has {has}. Rows of tokens are what is read "
            "without `type`; set `type` to the format of these."
        )
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise _wrong(row, column, "a list of integers", values)
    return values


def _wrong(row: NumberedRow, name: str, wanted: str, got: Any) -> DataError:
    has = "" if got is not None else f"; the row has {', '.join(row.row)}"
    return DataError(f"{row.place}: `{name}` must be {wanted}, got {type(got).__name__}{has}.")
