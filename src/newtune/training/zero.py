"""ZeRO: DeepSpeed keeps a part of the optimizer (1), gradients (2), parameters (3) per process.

DeepSpeed is asked directly, and not through accelerate: transformers' integration resumes from
DeepSpeed's own checkpoints only, and newtune's hold names and whole tensors, which any engine
reads. What is asked of it: averages of gradients, their norm and clipping, the optimizer's step,
and its doors to whole parameters and states (`deepspeed.utils.safe_*`). A step's micro-batches are
divided by newtune once, so that DeepSpeed's own division by the accumulation is switched off.
(Rajbhandari et al. 2020, arXiv:1910.02054.)
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import DeepSpeedOptimizerWrapper  # type: ignore[import-untyped]
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from transformers import Trainer

from newtune.distributed.group import Group
from newtune.distributed.world import name_as_the_only_process
from newtune.model.quantization import layers_of_four_bits
from newtune.plan.sharing import ParallelPlan, ZeroPlan
from newtune.training.build_locks import clear_build_locks
from newtune.training.checkpoint import Model, load_weights
from newtune.training.engine import Values
from newtune.training.optimizer_state import names_in_order
from newtune.training.run_state import read_optimizer_state
from newtune.training.twin import Twin


class StepsWithTheEngine(DeepSpeedOptimizerWrapper):  # type: ignore[misc]
    """The optimizer as the Trainer sees it: it has stepped already, when the norm was asked for."""

    _is_accelerate_prepared = True


class Zero:
    """The engine: DeepSpeed's, around the model, once there is an optimizer."""

    writes_parts = False

    def __init__(self, model: Model, plan: ZeroPlan, group: Group) -> None:
        self.model = model
        self.plan = plan
        self.group = group
        self.forwards_together = plan.stage == 3
        self._twin = Twin(model)
        self._engine: Any = None
        self._waiting: Path | None = None
        self._names: list[list[str]] = []

    @classmethod
    def start(cls, model: Model, plan: ParallelPlan, group: Group) -> "Zero":
        """Return the engine of a model, which is taken apart when the optimizer is made."""
        assert plan.zero is not None
        join_group(group, plan.backend)
        return cls(model, plan.zero, group)

    def prepare(self, optimizer: Optimizer, trainer: Trainer) -> Optimizer:
        """Let DeepSpeed share out the model, and step."""
        names = names_in_order(optimizer, self.model)
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        self._names = [names[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
        if self.plan.stage == 3:
            self._share_parameters()
        if self.plan.cpu_adam:
            optimizer = on_cpu(optimizer)
        self._engine, stepped, _, _ = deepspeed.initialize(
            model=self.model, optimizer=optimizer, config=dict(self.plan.config)
        )
        trainer.model_wrapped = self._engine
        if self._waiting is not None:  # weights that a checkpoint gave, in full precision
            self.load_weights(self._waiting)
        return StepsWithTheEngine(stepped)

    def _share_parameters(self) -> None:
        """Take each parameter to the device and apart, one after the other."""
        if self.plan.dtype is not None:
            for parameter in self.model.parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(getattr(torch, self.plan.dtype))
        deepspeed.zero.Init(
            module=self.model,
            config_dict_or_path=dict(self.plan.config),
            remote_device="cpu" if self.plan.offloads_parameters else None,
        )
        for layer in layers_of_four_bits(self.model):  # what is beside the parameters
            layer.quant_state.to(self.group.device)
        # a layer of an adapter may read what belongs to the layers inside of it
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                for parameter in module.parameters():
                    deepspeed.zero.register_external_parameter(module, parameter)

    # --- a step

    def backward(self, loss: Tensor, accelerator: Accelerator) -> None:
        """Add a micro-batch's gradient; after the step's last one it is averaged."""
        self._engine.set_gradient_accumulation_boundary(accelerator.sync_gradients)
        self._engine.backward(loss, scale_wrt_gas=False)

    def clip(self, model: nn.Module, max_norm: float, accelerator: Accelerator) -> Tensor:
        """Clip the gradient, step, and return the norm it had: DeepSpeed does it in one.

        A norm that is not finite takes no step.
        """
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def end_evaluation(self) -> None:
        """Drop what forwards without a backward left gathered."""
        self._engine.empty_partition_cache()

    # --- what is written and read

    @contextmanager
    def whole(self, values: Values) -> Iterator[Model]:
        """Yield the model unshared and on the CPU, in the precision that the optimizer keeps."""
        with self._twin.filled(self._values(values)) as model:
            yield model

    def _values(self, values: Values) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            if values == "none" or (values == "trained" and not parameter.requires_grad):
                continue
            if parameter.requires_grad:
                value = safe_get_full_fp32_param(parameter)
            else:
                with deepspeed.zero.GatheredParameters([parameter]):
                    value = parameter.detach().clone()
            if self.group.is_main:
                yield name, value.cpu()

    def load_weights(self, checkpoint: Path) -> None:
        """Load weights as on one process, and share them out.

        Before the model is shared, it is done after it.
        """
        if self._engine is None:
            self._waiting = checkpoint
            return
        room = (
            (name, torch.empty(parameter.shape))  # float32, as the optimizer keeps them
            for name, parameter in self._twin.model.named_parameters()
            if parameter.requires_grad
        )
        with self._twin.filled(room) as whole, torch.no_grad():
            load_weights(whole, checkpoint)
            loaded = dict(whole.named_parameters())
            for name, parameter in self._trained():
                self._set(parameter, loaded[name])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self.plan.stage == 3:
            safe_set_local_fp32_param(parameter, self._part(parameter, value))
        else:
            safe_set_full_fp32_param(parameter, value)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    def _part(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Return this process's part of a whole tensor; the last one is filled up."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        part = value.flatten()[self.group.rank * size : (self.group.rank + 1) * size]
        return torch.nn.functional.pad(part, (0, size - part.numel()))

    # --- the optimizer

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the state by parameter name, gathered; the tensors are on the first process."""
        inner: Optimizer = self._engine.basic_optimizer
        self._link_states(inner)
        own = inner.state[self._pieces()[0][0]]
        scalars = {key: torch.as_tensor(own[key]).float() for key in own if not _is_piece(own[key])}
        state: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._trained():
            whole = {
                key: safe_get_full_optimizer_state(parameter, key)
                for key, value in own.items()
                if _is_piece(value)
            }
            if self.group.is_main:
                moved = {key: value.cpu() for key, value in whole.items()}
                state[name] = {**{key: value.clone() for key, value in scalars.items()}, **moved}
        groups = [
            {**{key: value for key, value in group.items() if key != "params"}, "params": names}
            for group, names in zip(inner.param_groups, self._names, strict=True)
        ]
        return {"state": state, "param_groups": groups}

    def load_optimizer_state(self, optimizer: Any, checkpoint: Path) -> None:
        """Take over this process's part of the state of any engine."""
        saved = read_optimizer_state(checkpoint)
        inner: Optimizer = self._engine.basic_optimizer
        group_of = {name: group for group in saved["param_groups"] for name in group["params"]}
        for group, names in zip(inner.param_groups, self._names, strict=True):
            group |= {key: v for key, v in group_of[names[0]].items() if key != "params"}
        kinds: Mapping[str, Any] = next(iter(saved["state"].values()), {})
        for piece, _ in self._pieces():
            inner.state[piece] = {
                key: torch.zeros_like(piece) if _is_piece(value) else self._scalar(value)
                for key, value in kinds.items()
            }
        self._link_states(inner)
        for name, parameter in self._trained():
            for key, value in saved["state"][name].items():
                if not _is_piece(value):
                    continue
                if self.plan.stage == 3:
                    part = self._part(parameter, value)
                    safe_set_local_optimizer_state(parameter, part, key)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)

    def _link_states(self, inner: Optimizer) -> None:
        """Tell each parameter where its state lies; DeepSpeed itself forgets all groups but one."""
        for piece, parameters in self._pieces():
            if self.plan.stage != 3:
                lazy_init_hp_params_optimizer_state(parameters, piece, inner.state)

    def _scalar(self, value: Any) -> Any:
        """Return a state that is one number: DeepSpeed's Adam on the CPU counts steps in Python."""
        return int(value) if self.plan.cpu_adam else torch.as_tensor(value).clone()

    def _pieces(self) -> Sequence[tuple[Tensor, Sequence[nn.Parameter]]]:
        """Return the flat tensors that the optimizer steps, and whose parameters are in each."""
        stepped = self._engine.optimizer
        if self.plan.stage == 3:
            return [(flat, ()) for flat in stepped.fp32_partitioned_groups_flat]
        flats = stepped.single_partition_of_fp32_groups
        return list(zip(flats, stepped.bit16_groups, strict=True))


def _is_piece(value: Any) -> bool:
    """Tell whether a state is as large as what it belongs to; a count of steps is not."""
    return isinstance(value, Tensor) and value.dim() > 0


def on_cpu(optimizer: Optimizer) -> Optimizer:
    """Return DeepSpeed's Adam for parameters on the CPU, with the groups of torch's AdamW."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    clear_build_locks("cpu_adam")
    made: Optimizer = DeepSpeedCPUAdam(
        optimizer.param_groups, adamw_mode=isinstance(optimizer, torch.optim.AdamW)
    )
    return made


def join_group(group: Group, backend: str | None) -> None:
    """Make sure that there is a process group, of one if need be, and that DeepSpeed uses it."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    backend = backend or ("gloo" if group.device == "cpu" else "nccl")
    if not distributed.is_initialized():
        name_as_the_only_process()
        store = distributed.TCPStore(  # type: ignore[attr-defined]  # public, not in its __all__
            "localhost", port=0, world_size=1, is_master=True
        )
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False)
