"""Examples on disk: Arrow files that every process maps into memory and none reads whole."""

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newtune.data.tokenize import TokenBatch
from newtune.types import Example

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("row", pa.int64()),
        ("trained", pa.int32()),
    ]
)
"""`row` counts a dataset's rows from 1; `trained` is the number of trained tokens."""


class ExampleWriter:
    """Appends batches of examples to an Arrow file; use as a context."""

    def __init__(self, path: Path) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)

    def write(self, batch: TokenBatch, rows: NDArray[np.int64]) -> None:
        """Append the examples of a batch, which came from these rows."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(batch.input_ids)),
            pa.ListArray.from_arrays(offsets, pa.array(batch.labels)),
            pa.array(rows),
            pa.array(batch.trained().astype(np.int32)),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._writer.close()
        finally:
            self._sink.close()


class StoreFile(NamedTuple):
    """One file of a store and the dataset whose examples it holds; datasets count from 0."""

    path: Path
    dataset: int = 0


class _Chunk:
    """Views of one record batch; nothing is copied."""

    def __init__(self, batch: pa.RecordBatch, dataset: int) -> None:
        self.dataset = dataset
        self.input_ids = batch.column(0).values.to_numpy(zero_copy_only=True)
        self.labels = batch.column(1).values.to_numpy(zero_copy_only=True)
        self.offsets = batch.column(0).offsets.to_numpy(zero_copy_only=True)
        self.row = batch.column(2).to_numpy(zero_copy_only=True)
        self.trained = batch.column(3).to_numpy(zero_copy_only=True)


class ExampleStore:
    """The examples of Arrow files, or those that `indices` selects, in that order.

    Pickles as its paths and indices, so that a worker process maps the same files.
    """

    def __init__(
        self, files: Sequence[StoreFile], indices: NDArray[np.int64] | None = None
    ) -> None:
        self.files = tuple(files)
        self._chunks = [chunk for file in self.files for chunk in _read_chunks(file)]
        self._first = np.cumsum([0, *(len(chunk.row) for chunk in self._chunks)])
        self.indices = np.arange(self._first[-1]) if indices is None else indices
        self.lengths: NDArray[np.int32] = self._gather(
            [np.diff(chunk.offsets) for chunk in self._chunks], np.int32
        )
        """Tokens of each example."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        chunk, place = self._find(index)
        start, end = chunk.offsets[place], chunk.offsets[place + 1]
        return Example(chunk.input_ids[start:end], chunk.labels[start:end])

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleStore, (self.files, self.indices)

    def stored(self) -> Iterator[Example]:
        """Yield every example of the files in the order of the files, whatever is selected."""
        for chunk in self._chunks:
            for start, end in pairwise(chunk.offsets.tolist()):
                yield Example(chunk.input_ids[start:end], chunk.labels[start:end])

    def origin(self, index: int) -> tuple[int, int]:
        """Return (dataset, row) of an example; datasets count from 0, rows from 1."""
        chunk, place = self._find(index)
        return chunk.dataset, int(chunk.row[place])

    def origins(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the dataset and the row of every example."""
        return self.datasets(), self._gather([chunk.row for chunk in self._chunks], np.int64)

    def datasets(self) -> NDArray[np.int32]:
        """Return the dataset of every example."""
        numbers = [np.full(len(chunk.row), chunk.dataset, np.int32) for chunk in self._chunks]
        return self._gather(numbers, np.int32)

    def trained(self) -> NDArray[np.int32]:
        """Return the number of trained tokens of every example."""
        return self._gather([chunk.trained for chunk in self._chunks], np.int32)

    def select(self, places: NDArray[np.int64]) -> "ExampleStore":
        """Return a store of the examples at `places` of this one."""
        chosen = copy(self)
        chosen.indices, chosen.lengths = self.indices[places], self.lengths[places]
        return chosen

    def _find(self, index: int) -> tuple[_Chunk, int]:
        position = int(self.indices[index])
        chunk = int(np.searchsorted(self._first, position, side="right")) - 1
        return self._chunks[chunk], position - int(self._first[chunk])

    def _gather(self, columns: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
        every = np.concatenate(columns) if columns else np.empty(0)
        return every.astype(dtype)[self.indices]


def is_whole(path: Path) -> bool:
    """Say whether a file is there and has its end: a power cut can leave one without."""
    try:
        _read_chunks(StoreFile(path))
    except (FileNotFoundError, pa.ArrowInvalid):
        return False
    return True


def _read_chunks(file: StoreFile) -> list[_Chunk]:
    # closing gives the file descriptor back; the mapping lives as long as what views it
    with pa.memory_map(str(file.path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        return [_Chunk(batch, file.dataset) for batch in batches]
