"""Context parallel: neighbouring processes share every sequence (`model/shared_sequence.py`).

It goes with any engine that averages gradients over all processes: each process's loss is that of
the whole micro-batch, its gradient that of the part that went through it, as many times as there
are parts.
"""

import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

from newtune.distributed.group import Group
from newtune.model.self_check import require_shared_loss
from newtune.model.shared_sequence import SharedSequence
from newtune.plan.parts import Plan
from newtune.plan.sharing import MeshPlan
from newtune.training.checkpoint import Model
from newtune.training.evaluation import LossSum


def share_sequences(model: Model, plan: Plan, group: Group) -> LossSum:
    """Let neighbouring processes share every sequence, and return the loss that they compute.

    Raises:
        ModelError: it is not the loss of one process.
    """
    shared = SharedSequence.of(model, context_group(plan.training.parallel.mesh, group))
    if next(model.parameters()).device == torch.device(group.device):  # else it is sharded first
        autocast = plan.model.precision.autocast
        require_shared_loss(
            model, shared.loss_sum, autocast=getattr(torch, autocast) if autocast else None
        )
    return shared.loss_sum


def context_group(mesh: MeshPlan, group: Group) -> ProcessGroup:
    """Return the neighbours that share sequences with this process; every process must ask."""
    device = torch.device(group.device).type
    axes = init_device_mesh(
        device, (group.size // mesh.context, mesh.context), mesh_dim_names=("apart", "context")
    )
    return axes.get_group("context")
