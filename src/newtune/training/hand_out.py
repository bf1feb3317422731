"""Weights that one process has read, handed out to the others piece by piece.

hand_out = HandOut(model, group)
for piece in pieces:
    hand_out.piece(piece)     # whole on every process, for a moment
    fully_shard(piece)        # which keeps a part
hand_out.buffers()
"""

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from newtune.distributed.group import Group
from newtune.errors import ModelError
from newtune.training.twin import places_of, put


class HandOut:
    """The first process's values of a model that the others hold empty.

    Raises:
        ModelError: the processes have made other models.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        self.model = model
        self.group = group
        self._places = places_of(model)
        _require_same(model, group)

    def piece(self, module: nn.Module) -> None:
        """Give every process the values of what is not sharded yet; all must call it."""
        waiting = [value for value in module.parameters() if not isinstance(value, DTensor)]
        for parameter in waiting:
            value = self._from_first(parameter.detach())
            whole = nn.Parameter(value, requires_grad=parameter.requires_grad)
            put(self._places[id(parameter)], whole)

    def buffers(self) -> None:
        """Give every process the values of the buffers, some of which are read as weights are."""
        for buffer in self.model.buffers():
            buffer.copy_(self._from_first(buffer))

    def _from_first(self, tensor: Tensor) -> Tensor:
        device = torch.device(self.group.device)
        value = tensor.to(device) if self.group.is_main else torch.empty_like(tensor, device=device)
        value = value.contiguous()
        distributed.broadcast(value, src=0)
        return value


def _require_same(model: nn.Module, group: Group) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    mine = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in named]
    others = [set(mine) ^ set(theirs) for theirs in group.gather(mine)]
    if differing := sorted(set().union(*others)):
        raise ModelError(
            "the processes that read no weights have made another model than the first one: "
            f"{'; '.join(differing[:4])}. Leave `cpu_ram_efficient_loading` out."
        )
