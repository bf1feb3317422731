"""Read a checkpoint tensor by tensor, and write a new one of which one shard is in memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class NeedsWholeModel(Exception):  # noqa: N818  # an answer, and no fault
    """These weights cannot be taken tensor by tensor; the message says why."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a folder of safetensors, read one at a time when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.tensors: dict[str, Stored] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a mapping
                    shape = tuple(file.get_slice(name).get_shape())
                    self.tensors[name] = Stored(path, shape)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name → shape, in the order of the files."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor as it is stored.

        Raises:
            KeyError: there is none of this name.
        """
        with safe_open(self.tensors[name].file, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by the rest of their names."""
        found = [name for name in self.tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.read(name) for name in found}


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would load, in order; none = no safetensors."""
    index = folder / INDEX
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


@dataclass
class ShardWriter:
    """Takes tensors in order and writes a file whenever `most_bytes` have come together."""

    folder: Path
    most_bytes: int
    total_bytes: int = 0
    _held: dict[str, Tensor] = field(default_factory=dict)
    _held_bytes: int = 0
    _written: list[list[str]] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it may be written now or later."""
        size = tensor.numel() * tensor.element_size()
        if self._held and self._held_bytes + size > self.most_bytes:
            self._flush()
        self._held[name] = tensor.contiguous()
        self._held_bytes += size
        self.total_bytes += size

    def finish(self) -> None:
        """Write what is left, give the files their final names, and write the index."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._part(0).rename(self.folder / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._written):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._part(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        content = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(content, indent=2), encoding="utf-8")

    def _flush(self) -> None:
        if not self._held:
            return
        save_file(self._held, self._part(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._held))
        self._held = {}
        self._held_bytes = 0

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"
