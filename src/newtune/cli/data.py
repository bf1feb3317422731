"""`newtune data CONFIG`: examples as the trainer gets them, masks and pack boundaries visible."""

from pathlib import Path
from typing import TYPE_CHECKING

from newtune.cli.config_file import read_config
from newtune.cli.show_data import (
    show_counts,
    show_dropped,
    show_legend,
    show_pack,
    show_totals,
)
from newtune.errors import DataError

if TYPE_CHECKING:
    from newtune.data.prepare import PreparedData


def run(
    config_path: Path,
    overrides: list[str],
    *,
    rows: int = 3,
    row: int | None = None,
    dropped: bool = False,
) -> int:
    """Show the first `rows` sequences of the first epoch, or row number `row`, or what was dropped.

    Raises:
        DataError: no example came from row `row`.
    """
    config = read_config(config_path, overrides)
    from newtune.data.packing import epoch_sequences
    from newtune.data.prepare import prepare_data
    from newtune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer, config.model)
    data = prepare_data(config, tokenizer)
    if dropped:
        show_dropped(data.counts)
        return 0
    if row is not None:
        show_pack(data, tokenizer, f"row {row}", _places_of_row(data, row))
    else:
        sequences = epoch_sequences(data.train.lengths, data.packing, 0)
        unit = "pack" if data.packing.packed else "example"
        for number, places in enumerate(sequences[:rows], 1):
            show_pack(data, tokenizer, f"{unit} {number}", places.tolist())
    show_legend()
    show_counts(data.counts)
    show_totals(data)
    return 0


def _places_of_row(data: "PreparedData", row: int) -> list[int]:
    import numpy as np

    _, rows = data.train.origins()
    places: list[int] = np.flatnonzero(rows == row).tolist()
    if not places:
        raise DataError(
            f"No trained example came from row {row}. It may be held out, or dropped: "
            "`newtune data CONFIG --dropped` lists what was."
        )
    return places
