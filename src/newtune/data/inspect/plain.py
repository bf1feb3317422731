"""Views as plain values, for `newtune data --json`; docs/data.md lists the fields."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from newtune.data.counts import DatasetCounts
from newtune.data.inspect.batches import BatchView, ExampleView
from newtune.data.inspect.rows import RowView, TokenView

Plain = dict[str, Any]


def token_as_dict(token: TokenView) -> Plain:
    """Return one token's fields; `bytes` is there when it holds a part of a character."""
    values: Plain = {
        "id": token.id,
        "label": token.label,
        "trained": token.trained,
        "position": token.position,
        "text": token.text.text,
        "special": token.text.special,
        "turn": token.turn.number if token.turn else None,
        "role": token.turn.role if token.turn else None,
    }
    return values | ({"bytes": token.text.hex} if token.text.hex else {})


def batch_as_dict(batch: BatchView) -> Plain:
    """Return one micro-batch; numbers count from 1."""
    return {
        "batch": batch.number + 1,
        "shape": list(batch.shape),
        "trained_tokens": batch.trained,
        "padding": batch.padding,
        "cu_seq_lens": batch.boundaries,
        "sequences": [
            [_example_as_dict(example) for example in row.examples] for row in batch.sequences
        ],
    }


def _example_as_dict(example: ExampleView) -> Plain:
    origin = example.origin
    return {
        "example": _from_one(origin.example) if origin else None,
        "dataset": origin.dataset + 1 if origin else None,
        "row": origin.row if origin else None,
        "pack": example.pack + 1,
        "start": example.start,
        "tokens": [token_as_dict(token) for token in example.tokens],
    }


def _from_one(number: int | None) -> int | None:
    return None if number is None else number + 1


def row_as_dict(view: RowView, fate: str) -> Plain:
    """Return one row; `fate` says in words what became of it."""
    return {
        "dataset": view.dataset + 1,
        "row": view.number,
        "place": view.place,
        "raw": json_ready(view.row),
        "text": view.text,
        "dropped": view.dropped,
        "error": str(view.error) if view.error else None,
        "fate": fate,
        "tokens": [token_as_dict(token) for token in view.tokens],
    }


def counts_as_dict(counts: DatasetCounts, limit: int | None = None) -> Plain:
    """Return what was counted of a dataset, at most `limit` dropped rows of a reason listed."""
    values = asdict(counts)
    for dropped in values["dropped"]:
        dropped["examples"] = dropped["examples"][:limit]
    return values


def json_ready(row: Mapping[str, Any]) -> Any:
    """Return a row as JSON can hold it: dates and bytes as text."""
    return json.loads(json.dumps(row, default=str))
