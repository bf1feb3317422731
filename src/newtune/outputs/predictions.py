"""What models predict at the trained tokens of some rows, in float32 however they are stored."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from newtune.model.placement import input_device
from newtune.model.quantization import layers_of_four_bits
from newtune.types import IGNORE_INDEX, Example

POSITIONS_PER_ROW = 128
TOKENS_PER_FORWARD = 2048
POSITIONS_PER_FORWARD = 512


class Examples(Protocol):
    """Rows to compare on, one by one."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """Return row `index`."""
        ...


class KeptLogits:
    """Logits written to a folder, read back one batch at a time."""

    def __init__(self, folder: Path, name: str, batches: Iterable[Tensor]) -> None:
        self.files: list[Path] = []
        for number, logits in enumerate(batches):
            self.files.append(folder / f"{name}-{number}.npy")
            np.save(self.files[-1], logits.numpy())

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches in order."""
        for file in self.files:
            yield torch.from_numpy(np.load(file))


def choose_examples(examples: Examples, *, most: int) -> list[Example]:
    """Return rows in order, with their trained positions thinned out, up to `most` predictions."""
    chosen: list[Example] = []
    for index in range(len(examples)):
        example = _thinned(examples[index], most=min(most, POSITIONS_PER_ROW))
        if len(predicting(example)):
            chosen.append(example)
        most -= len(predicting(example))
        if most <= 0:
            break
    return chosen


def predicting(example: Example) -> NDArray[np.intp]:
    """Return the positions whose prediction is a trained token: one before each of them."""
    return np.flatnonzero(example.labels[1:] != IGNORE_INDEX)


@torch.no_grad()
def trained_logits(
    model: PreTrainedModel | PeftModel, examples: Sequence[Example]
) -> Iterator[Float[Tensor, "positions vocab"]]:
    """Yield each batch's predictions of trained tokens in float32 on the CPU, rows in given order.

    Rows are padded at the right without a mask: in a causal model nothing real sees the padding.
    """
    was_training = model.training
    model.eval()
    device = input_device(model)
    with float32_arithmetic(model):
        for group in _batches(examples):
            width = max(len(example.input_ids) for example in group)
            ids = np.zeros((len(group), width), dtype=np.int64)
            for row, example in enumerate(group):
                ids[row, : len(example.input_ids)] = example.input_ids
            wanted = [predicting(example) for example in group]
            rows = torch.from_numpy(np.repeat(np.arange(len(group)), [len(w) for w in wanted]))
            columns = torch.from_numpy(np.concatenate(wanted))
            with only_positions(model, rows.to(device), columns.to(device)):
                output = model(input_ids=torch.from_numpy(ids).to(device), use_cache=False)
            yield output.logits[0].float().cpu()
    model.train(was_training)


@contextmanager
def only_positions(
    model: PreTrainedModel | PeftModel, rows: Tensor, columns: Tensor
) -> Iterator[None]:
    """Let the output head see only these positions, so logits are [1, positions, vocab]."""

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        here = args[0].device
        return (args[0][rows.to(here), columns.to(here)][None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def float32_arithmetic(model: nn.Module) -> Iterator[None]:
    """Compute in float32 over weights stored in 16 bit: one module at a time is widened.

    Every module that holds 16-bit parameters of its own gets them in float32 for the time of its
    forward, and the stored ones back afterwards, bit for bit.
    """
    narrow = {torch.bfloat16, torch.float16}
    with ExitStack() as stack:
        for layer in layers_of_four_bits(model):
            stack.enter_context(_multiplying_in(layer, torch.float32))
        for module in model.modules():
            own = [p for p in module.parameters(recurse=False) if p.dtype in narrow]
            if own:
                stack.enter_context(_widened(module, own))
        yield


@contextmanager
def _multiplying_in(layer: Any, dtype: torch.dtype) -> Iterator[None]:
    before = layer.compute_dtype
    layer.compute_dtype = dtype
    try:
        yield
    finally:
        layer.compute_dtype = before


@contextmanager
def _widened(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    stored: list[Tensor] = []

    def widen(*_: Any) -> None:
        stored[:] = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = parameter.data.float()

    def restore(*_: Any) -> None:
        for parameter, data in zip(parameters, stored, strict=True):
            parameter.data = data
        stored.clear()

    before = module.register_forward_pre_hook(widen)
    after = module.register_forward_hook(restore, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _thinned(example: Example, *, most: int) -> Example:
    """Return the example with at most `most` trained tokens, evenly chosen."""
    trained = predicting(example) + 1
    if len(trained) <= most:
        return example
    kept = trained[np.linspace(0, len(trained) - 1, most).astype(np.intp)]
    labels = np.full_like(example.labels, IGNORE_INDEX)
    labels[kept] = example.labels[kept]
    return Example(example.input_ids, labels)


def _batches(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield consecutive rows, as many as fit the budgets of one forward."""
    group: list[Example] = []
    width = positions = 0
    for example in examples:
        wider = max(width, len(example.input_ids))
        more = positions + len(predicting(example))
        too_many = wider * (len(group) + 1) > TOKENS_PER_FORWARD or more > POSITIONS_PER_FORWARD
        if group and too_many:
            yield group
            group, wider, more = [], len(example.input_ids), len(predicting(example))
        group.append(example)
        width, positions = wider, more
    if group:
        yield group
