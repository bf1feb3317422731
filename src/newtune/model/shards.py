"""A folder of torch.distributed.checkpoint: tensors of which each process wrote its parts.

shards = Shards(folder)      # reads the metadata alone
shards.shapes                # name → whole shape
shards.read(names)           # whole tensors; their parts are read one after the other
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from newtune.errors import ModelError

FOLDER = "sharded"
"""Of a checkpoint, for what its processes wrote in parts."""
METADATA = ".metadata"
MODEL = "model."
OPTIMIZER = "optimizer."
"""How the names of weights begin (as accelerate has it), and those of the optimizer's state."""


def is_sharded(checkpoint: Path) -> bool:
    """Tell whether a checkpoint holds its tensors in parts."""
    return (checkpoint / FOLDER / METADATA).is_file()


class Shards:
    """What lies in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, checkpoint: Path) -> "Shards":
        """Return those of a checkpoint."""
        return cls(checkpoint / FOLDER)

    @cached_property
    def metadata(self) -> Metadata:
        """Return what the folder says of its tensors.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            return FileSystemReader(self.folder).read_metadata()
        except OSError as error:
            raise ModelError(f"{self.folder} holds no sharded checkpoint: {error}") from error

    @cached_property
    def tensors(self) -> Mapping[str, TensorStorageMetadata]:
        """Return name → whole size, dtype and parts."""
        items = self.metadata.state_dict_metadata.items()
        return {name: item for name, item in items if isinstance(item, TensorStorageMetadata)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → whole shape."""
        return {name: tuple(item.size) for name, item in self.tensors.items()}

    def bytes_of(self, name: str) -> int:
        """Return the size of a whole tensor."""
        item = self.tensors[name]
        return item.size.numel() * item.properties.dtype.itemsize

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return whole tensors; this process reads them by itself.

        Raises:
            ModelError: a part is missing or broken.
        """
        room = {
            name: torch.empty(self.tensors[name].size, dtype=self.tensors[name].properties.dtype)
            for name in names
        }
        self.fill(room, alone=True)
        return room

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the whole tensors whose names begin with `prefix`, by the rest of their names."""
        found = self.read(name for name in self.tensors if name.startswith(prefix))
        return {name.removeprefix(prefix): tensor for name, tensor in found.items()}

    def fill(self, room: dict[str, Tensor], *, alone: bool = False) -> None:
        """Read into tensors, however they are sharded; every process must call it, or is alone.

        Raises:
            ModelError: a part is missing or broken.
        """
        if not room:
            return
        try:
            with warnings.catch_warnings():  # it warns of what is asked for: that one reads alone
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                load(room, storage_reader=FileSystemReader(self.folder), no_dist=alone)
        except CheckpointException as error:
            reasons = "; ".join(f"{type(e[0]).__name__}: {e[0]}" for e in error.failures.values())
            raise ModelError(f"{self.folder} cannot be read: {reasons}") from error

    def faults(self, expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
        """Yield what is wrong: a tensor missing or of another shape, a part missing or cut off."""
        shapes = self.shapes
        for name, shape in expected.items():
            if shapes.get(name) != shape:
                yield f"{name} is {shapes.get(name)} instead of {shape}"
        ends: dict[str, int] = defaultdict(int)
        stored = set()
        for index, place in self.metadata.storage_data.items():
            ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
            stored.add((index.fqn, tuple(index.offset or ())))
        for file, end in ends.items():
            path = self.folder / file
            if not path.is_file() or path.stat().st_size < end:
                yield f"{path} is missing or cut off"
        for name, item in self.tensors.items():
            parts = [chunk for chunk in item.chunks if (name, tuple(chunk.offsets)) in stored]
            if sum(math.prod(chunk.sizes) for chunk in parts) != item.size.numel():
                yield f"{name} is not whole"
