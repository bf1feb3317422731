"""FSDP2: each process keeps a part of every parameter, and gathers a layer while it computes.

engine = FullySharded.start(model, plan, group)   # in place; the optimizer is made after it
with engine.whole("trained") as model:            # on the first process an ordinary model again
    ...

What is written is whole, unless checkpoints in parts are asked for: the first process holds an
empty twin of the model, made before the model was sharded, which is filled with gathered
parameters. So every check of a checkpoint or a result is the same as without sharding. (Zhao et al.
2023, arXiv:2304.11277; torch's `fully_shard`.)
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from transformers import Trainer

from newtune.distributed.group import Group
from newtune.errors import ConfigError, Problem
from newtune.model.head import base_model
from newtune.model.quantization import layers_of_four_bits
from newtune.model.shards import is_sharded
from newtune.plan.sharing import FsdpPlan, MeshPlan, ParallelPlan
from newtune.training.checkpoint import Model, load_weights
from newtune.training.engine import Values
from newtune.training.hand_out import HandOut
from newtune.training.optimizer_state import load_named_state, named_state
from newtune.training.run_state import read_optimizer_state
from newtune.training.shards import load_weight_shards, optimizer_of_shards
from newtune.training.tensor import split_layers
from newtune.training.twin import Twin, room_for


class FullySharded:
    """The engine: a sharded model and its empty twin."""

    forwards_together = True

    def __init__(self, model: Model, twin: Twin, *, writes_parts: bool = False) -> None:
        self.model = model
        self.twin = twin
        self.writes_parts = writes_parts

    @classmethod
    def start(cls, model: Model, plan: ParallelPlan, group: Group) -> "FullySharded":
        """Split the layers of a model, shard it, or both, in place."""
        twin = Twin(model)
        axes = axes_of(plan.mesh, torch.device(group.device).type)
        if plan.mesh.tensor > 1:
            split_layers(model, plan.tensor_styles, axes["tensor"])
            model.to(torch.device(group.device))  # type: ignore[arg-type]  # mypy loses the overload
        if plan.fsdp is not None:
            names = [name for name in axes.mesh_dim_names or () if name != "tensor"]
            shard(model, plan.fsdp, axes[tuple(names)], group)
        for layer in layers_of_four_bits(model):  # torch moves only parameters
            layer.quant_state.to(group.device)
        return cls(model, twin, writes_parts=plan.fsdp is not None and plan.fsdp.writes_parts)

    def prepare(self, optimizer: Optimizer, trainer: Trainer) -> Optimizer:
        """Keep accelerate from placing the model and exchanging its gradients once more."""
        trainer.is_distributed_loading_by_transformers = True
        # a fused step takes parameters that all lie alike
        groups = [by_layout(group) for group in optimizer.param_groups]
        optimizer.param_groups[:] = [group for parts in groups for group in parts]
        return optimizer

    def backward(self, loss: Tensor, accelerator: Accelerator) -> None:
        """Add a micro-batch's gradient, exchanged at once: until the last, it would be whole."""
        accelerator.backward(loss)

    def clip(self, model: nn.Module, max_norm: float, accelerator: Accelerator) -> Tensor:
        """Clip the gradient, of which each process holds a part, and parts that lie apart."""
        found = [p for p in model.parameters() if p.grad is not None]
        parts = [part["params"] for part in by_layout({"params": found})]
        norms = [whole_norm([p.grad for p in part]) for part in parts]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if max_norm != math.inf:
            for part in parts:
                clip_grads_with_norm_(part, max_norm, norm)
        return norm

    def end_evaluation(self) -> None:
        """Drop what forwards without a backward left gathered."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextmanager
    def whole(self, values: Values) -> Iterator[Model]:
        """Yield the model unsharded and on the CPU; every process must enter.

        What is not asked for stays empty (on the meta device).
        """
        with self.twin.filled(self._values(gathered, values)) as whole:
            yield whole

    def load_weights(self, checkpoint: Path) -> None:
        """Load weights, of which each process takes its part.

        What is frozen beside an adapter is left as it is.
        """
        if is_sharded(checkpoint):
            load_weight_shards(self.model, checkpoint)
            return
        with self.twin.filled(self._values(room_for, "trained")) as whole, torch.no_grad():
            load_weights(whole, checkpoint)
            loaded = dict(whole.named_parameters())
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(as_sharded(loaded[name], parameter))

    def optimizer_state(self, optimizer: AcceleratedOptimizer) -> dict[str, Any]:
        """Return the state by parameter name, gathered unless parts are written."""
        state = named_state(optimizer, self.model)
        return state if self.writes_parts else gathered_state(state)

    def load_optimizer_state(self, optimizer: AcceleratedOptimizer, checkpoint: Path) -> None:
        """Take this process's part of the state over."""
        if is_sharded(checkpoint):
            state = optimizer_of_shards(checkpoint, self.model)
        else:
            state = sharded_state(read_optimizer_state(checkpoint), self.model)
        load_named_state(optimizer.optimizer, self.model, state)

    def _values(
        self, of: Callable[[Tensor], Tensor], values: Values
    ) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            if values == "all" or (values == "trained" and parameter.requires_grad):
                yield name, of(parameter.detach())


def shard(model: Model, plan: FsdpPlan, axes: DeviceMesh, group: Group) -> None:
    """Shard a model in place, layer by layer; on two axes each copy is shared by neighbours (HSDP).

    Raises:
        ConfigError: a class of layers that the model does not have.
    """
    base = base_model(model)
    offload = CPUOffloadPolicy(pin_memory=plan.pin_memory) if plan.offload else OffloadPolicy()
    dtypes = {key: getattr(torch, name) for key, name in plan.dtypes.items()}
    options: dict[str, Any] = {
        "mesh": axes,
        "reshard_after_forward": plan.reshard_after_forward,
        "mp_policy": MixedPrecisionPolicy(**dtypes),
        "offload_policy": offload,
    }
    hand_out = HandOut(base, group) if plan.loads_once else None
    # what is left (embeddings, last norm, head) is gathered for the whole of a step
    last = {**options, "reshard_after_forward": False}
    for piece, how in [*((piece, options) for piece in pieces(base, plan)), (base, last)]:
        if hand_out is not None:
            hand_out.piece(piece)
        fully_shard(piece, **how)
    if hand_out is not None:
        hand_out.buffers()


def axes_of(mesh: MeshPlan, device: str) -> DeviceMesh:
    """Return the processes laid out along the axes that are used, the outermost first.

    Processes that share sequences share parameters, too.
    """
    shards = mesh.shards * mesh.context
    sizes = {"replicate": mesh.replicas, "shard": shards, "tensor": mesh.tensor}
    used = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    return init_device_mesh(device, tuple(used.values()), mesh_dim_names=tuple(used))


def by_layout(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a group of parameters as groups of those that lie on the same axes."""
    found: dict[Any, list[Tensor]] = {}
    for parameter in group["params"]:
        axes = parameter.device_mesh if isinstance(parameter, DTensor) else None
        found.setdefault(axes, []).append(parameter)
    return [{**group, "params": parameters} for parameters in found.values()]


def whole_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of gradients that lie alike, whole; every process must ask."""
    norm = get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def pieces(base: nn.Module, plan: FsdpPlan) -> list[nn.Module]:
    """Return the modules that are gathered one at a time, inner ones first."""
    if plan.wrap == "nothing":
        return []
    inner = list(base.modules())[:0:-1]
    if plan.wrap == "size":
        return _by_size(inner, plan.least_parameters)
    names = plan.layer_classes or tuple(getattr(base, "_no_split_modules", None) or ())
    present = {type(module).__name__ for module in inner}
    if missing := sorted(set(names) - present) if plan.layer_classes else []:
        message = f"the model has no module of class `{missing[0]}`"
        hint = f"Its classes: {', '.join(sorted(present))}. Empty: the decoder layers."
        key = "fsdp_config.transformer_layer_cls_to_wrap"
        raise ConfigError([Problem(key, message, hint)])
    return [module for module in inner if type(module).__name__ in names]


def _by_size(inner: list[nn.Module], least: int) -> list[nn.Module]:
    """Return the smallest modules that hold `least` parameters outside of those already taken."""
    taken: set[int] = set()
    found = []
    for module in inner:
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in taken}
        if sum(own.values()) >= least:
            found.append(module)
            taken |= own.keys()
    return found


def gathered(value: Tensor) -> Tensor:
    """Return the whole of a sharded tensor on the CPU; every process must ask."""
    if not isinstance(value, DTensor):
        return value.cpu()
    mesh = value.device_mesh
    local = value.to_local().to(mesh.device_type)  # offloaded ones are exchanged on the GPU, too
    placed = DTensor.from_local(
        local, mesh, value.placements, shape=value.shape, stride=value.stride()
    )
    return placed.full_tensor().cpu()


def as_sharded(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, as another tensor of its shape is sharded."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    local_device = like.to_local().device
    placed = distribute_tensor(
        value.to(like.device_mesh.device_type),
        like.device_mesh,
        like.placements,
        src_data_rank=None,  # every process has the whole
    )
    return placed.to(local_device)


def gathered_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state (`named_state`) with whole tensors; every process must ask."""
    return cast(
        "dict[str, Any]",
        tree_map(lambda value: gathered(value) if isinstance(value, DTensor) else value, state),
    )


def sharded_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state as the model's parameters are sharded."""
    parameters = dict(model.named_parameters())
    values = {
        name: {
            key: as_sharded(value, parameters[name]) if isinstance(value, Tensor) else value
            for key, value in of_parameter.items()
        }
        for name, of_parameter in state["state"].items()
        if name in parameters
    }
    return {**state, "state": values}
