"""The parts of a plan that say how processes share a model, its rows and its sequences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from newtune.plan.facts import Dtype

ELEMENT_BY_ELEMENT = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers of which it does not matter who holds which element; by torch's own operators."""


@dataclass(frozen=True)
class FsdpPlan:
    """How a model is sharded over the processes (FSDP2)."""

    reshard_after_forward: bool = True
    """Drop a layer's gathered parameters between forward and backward."""
    offload: bool = False
    """Parameters, gradients and optimizer state lie on the CPU."""
    pin_memory: bool = False
    wrap: Literal["layers", "size", "nothing"] = "layers"
    """What is gathered as one piece: decoder layers, modules of some size, or the whole model."""
    layer_classes: tuple[str, ...] = ()
    """Empty = the decoder layers that the model's class names."""
    least_parameters: int = 0
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """param_dtype, reduce_dtype, output_dtype → torch's name; empty = those of the parameters."""
    loads_once: bool = False
    """Only the first process reads the weights, and hands them out piece by piece."""
    writes_parts: bool = False
    """Checkpoints hold weights and optimizer state as each process has them, not whole."""


@dataclass(frozen=True)
class MeshPlan:
    """How processes are laid out; the sizes multiply to their number."""

    replicas: int = 1
    """Copies of the model: each has data of its own, gradients are averaged."""
    shards: int = 1
    """Processes that share the parameters of a copy (FSDP2); each has data of its own, too."""
    context: int = 1
    """Neighbouring processes that share every sequence: each computes a part of its tokens."""
    tensor: int = 1
    """Neighbouring processes that share every layer and compute the same rows together."""

    @property
    def sharers(self) -> int:
        """Return how many neighbours have the same rows."""
        return self.context * self.tensor


@dataclass(frozen=True)
class ZeroPlan:
    """How DeepSpeed shares a model out."""

    stage: Literal[1, 2, 3]
    """Shared are the optimizer's state (1), gradients too (2), parameters too (3)."""
    config: Mapping[str, Any]
    """DeepSpeed's own configuration, with nothing left to fill."""
    dtype: Dtype | None = None
    """Weights are in this, and in float32 beside the optimizer's state; None = as loaded."""
    offloads_parameters: bool = False
    cpu_adam: bool = False
    """The offloaded optimizer is DeepSpeed's own Adam, which it compiles on first use."""


@dataclass(frozen=True)
class ParallelPlan:
    """How the processes of a run train one model."""

    engine: Literal["none", "ddp", "fsdp2", "tensor", "zero"] = "none"
    """ddp: every process holds the whole model, gradients are averaged. fsdp2: every process holds
    a part of each parameter; with several copies of the model it is HSDP. tensor: every process
    computes a part of each layer; `fsdp2` may do so, too (`mesh.tensor`). zero: DeepSpeed's ZeRO,
    also on one process, which may offload."""
    mesh: MeshPlan = field(default_factory=MeshPlan)
    fsdp: FsdpPlan | None = None
    tensor_styles: Mapping[str, str] = field(default_factory=dict)
    """Pattern of module names → how it is split (`training/tensor.py`)."""
    zero: ZeroPlan | None = None
    backend: str | None = None
    """How processes talk; None = nccl on GPUs, gloo on CPUs."""
    timeout_seconds: int = 1800
    hang_timeout_seconds: int = 600
    """Within it the others end when one process dies or hangs; 0 = not watched."""
    bucket_cap_mb: float | None = None
    broadcast_buffers: bool | None = None
    find_unused_parameters: bool = False

    @property
    def loads_once(self) -> bool:
        """Tell whether only the first process reads the weights."""
        return self.fsdp is not None and self.fsdp.loads_once

    @property
    def places_by_parts(self) -> bool:
        """Tell whether the model is read on the CPU and goes to the device in parts."""
        if self.zero is not None:
            return self.zero.stage == 3
        return self.engine in ("fsdp2", "tensor")
