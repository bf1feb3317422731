"""Tensor parallel: a few processes share every layer, each computing some of its columns or rows.

The model's own plan (`tp_plan` of transformers) says how; torch's `parallelize_module` does it. A
LoRA follows its layer: over columns, A is whole and B is split; over rows, A is split and B is
whole. Embeddings, norms and the output head are whole on every process, which all compute the same
there. (Shoeybi et al. 2019, arXiv:1909.08053.)
"""

import re
from collections.abc import Callable, Iterator, Mapping

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed import all_reduce
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from newtune.model.head import base_model
from newtune.training.checkpoint import Model


def split_layers(model: Model, styles: Mapping[str, str], mesh: DeviceMesh) -> None:
    """Split a model's layers in place over the processes of a one-dimensional mesh.

    `styles`: pattern of names (`model.layers.*.mlp.up_proj`) → a key of `STYLES`.
    """
    base = base_model(model)
    for name, layer in list(base.named_modules()):
        style = styles.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if style is not None:
            STYLES[style](layer, mesh)


class DropoutOfPart(nn.Module):
    """Dropout of this process's part of a row: the mask is drawn for all of it, as alone."""

    def __init__(self, rate: float, mesh: DeviceMesh) -> None:
        super().__init__()
        self.rate, self.rank, self.parts = rate, mesh.get_local_rank(), mesh.size()

    def forward(self, part: Tensor) -> Tensor:
        """Return the part with some of its values dropped."""
        if not self.training:
            return part
        whole = part.new_ones(*part.shape[:-1], part.shape[-1] * self.parts)
        kept = nn.functional.dropout(whole, self.rate)
        return part * kept.chunk(self.parts, dim=-1)[self.rank]


def _columns(layer: nn.Module, mesh: DeviceMesh) -> None:
    for part in _of_lora(layer, "base_layer", "lora_B"):
        _split(part, mesh, ColwiseParallel())


def _columns_gathered(layer: nn.Module, mesh: DeviceMesh) -> None:
    for part in _of_lora(layer, "base_layer", "lora_B"):
        _split(part, mesh, ColwiseParallel(output_layouts=Replicate()))


def _rows(layer: nn.Module, mesh: DeviceMesh) -> None:
    for part in _of_lora(layer, "base_layer", "lora_A"):
        _split(part, mesh, RowwiseParallel())
    if isinstance(layer, LoraLayer):
        for name, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                layer.lora_dropout[name] = DropoutOfPart(dropout.p, mesh)


def _rows_of_whole_input(layer: nn.Module, mesh: DeviceMesh) -> None:
    for part in _of_lora(layer, "base_layer", "lora_A"):
        _split(part, mesh, RowwiseParallel(input_layouts=Replicate()))


def _whole_with_split_input(layer: nn.Module, mesh: DeviceMesh) -> None:
    """Norms of single heads: each process has some heads, and a share of the gradient."""

    def add_up(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        all_reduce(total, group=mesh.get_group())
        return total

    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.register_hook(add_up)  # type: ignore[no-untyped-call]


STYLES: Mapping[str, Callable[[nn.Module, DeviceMesh], None]] = {
    "colwise": _columns,
    "colwise_gather_output": _columns_gathered,
    "rowwise": _rows,
    "rowwise_split_input": _rows_of_whole_input,
    "replicated_with_grad_allreduce": _whole_with_split_input,
}


def _of_lora(layer: nn.Module, base: str, split: str) -> Iterator[nn.Linear]:
    """Yield the linear layer itself, or the one below a LoRA and the LoRA's split matrices."""
    if isinstance(layer, nn.Linear) and not isinstance(layer, LoraLayer):
        yield layer
        return
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[0] in (base, split):
            yield module


def _split(layer: nn.Linear, mesh: DeviceMesh, style: ParallelStyle) -> None:
    # every process has read the whole, so that nothing is sent
    parallelize_module(layer, mesh, style, src_data_rank=None)
