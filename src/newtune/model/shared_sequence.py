"""One sequence over several processes: each has a part of its tokens, and attention sees them all.

Before attention the processes of a group exchange parts of the sequence for heads, and after it
back (`kernels/head_exchange.py`): between the two, the run's own attention computes whole sequences
of a few heads, masks of packed examples and windows included. Everything else in a decoder looks at
one token at a time. Labels are shifted before the sequence is cut, so that the last token of a part
is trained on the first of the next.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    packed_sequence_mask_function,
    sliding_window_overlay,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from newtune.errors import ModelError
from newtune.kernels.head_exchange import to_heads, to_parts, total
from newtune.model.attention import MaskFunction
from newtune.model.head import base_model, loss_of_targets, shift_labels
from newtune.types import IGNORE_INDEX, Batch

SHARED_ATTENTION = "newtune_shared_sequence"


@dataclass
class SharedSequence:
    """The processes that share a sequence, and the attention that each computes for its heads."""

    group: ProcessGroup
    attention: str
    positions: Int[Tensor, "batch seq"] | None = None
    """Of the whole sequence, during a forward of a part; None: what is forwarded is whole."""

    @classmethod
    def of(cls, model: nn.Module, group: ProcessGroup) -> "SharedSequence":
        """Let a model's attention see all parts of a sequence whenever `loss_sum` cuts one."""
        base = base_model(model)
        shared = cls(group, str(base.config._attn_implementation))
        AttentionInterface.register(SHARED_ATTENTION, shared.attend)
        AttentionMaskInterface.register(SHARED_ATTENTION, shared.mask)
        base.set_attn_implementation(SHARED_ATTENTION)
        return shared

    def loss_sum(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return what `compute_loss_sum` does; every process of the group must give this batch."""
        whole = padded(batch, multiple_of=self.group.size())
        targets = shift_labels(whole["labels"], whole["position_ids"])
        part = whole.copy()
        part["input_ids"], part["position_ids"] = map(
            self._part, (whole["input_ids"], whole["position_ids"])
        )
        self.positions = whole["position_ids"]
        try:
            found = torch.stack(loss_of_targets(model, part, self._part(targets)))
        finally:
            self.positions = None
        loss, count = total(found, self.group)
        return loss, count.detach()

    def _part(self, whole: Tensor) -> Tensor:
        return whole.chunk(self.group.size(), dim=1)[self.group.rank()]

    def mask(self, batch_size: int, q_length: int, kv_length: int, **options: Any) -> Tensor | None:
        """Return the mask of the whole sequence; for a flash attention, its positions.

        Raises:
            ModelError: the model masks in a way that is not known to be right here.
        """
        inner = ALL_MASK_ATTENTION_FUNCTIONS[self.attention]
        if self.positions is None:
            mask: Tensor | None = inner(batch_size, q_length, kv_length, **options)
            return mask
        if options["use_vmap"] or options["attention_mask"] is not None:
            raise ModelError(
                "this model masks its attention in a way of its own, which newtune does not know "
                "how to apply to a shared sequence. Leave `context_parallel_size` out."
            )
        length = self.positions.shape[1]
        options["mask_function"] = _mask_function(self.positions, options.get("local_size"))
        options["allow_is_causal_skip"] = False
        mask = inner(batch_size, length, length, **options)
        return self.positions[:, None, :, None] if mask is None else mask

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "batch heads part dim"],
        key: Float[Tensor, "batch kv_heads part dim"],
        value: Float[Tensor, "batch kv_heads part dim"],
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Float[Tensor, "batch part heads dim"], Tensor | None]:
        """Attend to the whole sequence, which the mask is as long as.

        Nothing else tells a part from a whole: where layers are computed anew for their backward,
        the forward is long over.
        """
        inner = ALL_ATTENTION_FUNCTIONS[self.attention]
        part = query.shape[2]
        if attention_mask is None or attention_mask.shape[2] != part * self.group.size():
            if self.positions is not None:
                raise ModelError(
                    f"{type(module).__name__} does not hand the mask of a shared sequence to its "
                    "attention. Leave `context_parallel_size` out."
                )
            whole: tuple[Tensor, Tensor | None] = inner(
                module, query, key, value, attention_mask, **options
            )
            return whole
        if self.attention.startswith("flash_attention"):
            options["position_ids"], attention_mask = attention_mask[:, 0, :, 0], None
        copies = -(-self.group.size() // key.shape[1])  # of each key head, where they are few
        key, value = (tensor.repeat_interleave(copies, dim=1) for tensor in (key, value))
        exchanged = to_heads((query, key, value), self.group)
        output, _ = inner(module, *exchanged, attention_mask, **options)
        return to_parts(output, self.group), None


def padded(batch: Batch, *, multiple_of: int) -> Batch:
    """Return a batch whose sequences can be cut into so many equal parts."""
    missing = -batch["input_ids"].shape[1] % multiple_of
    if not missing:
        return batch
    longer = batch.copy()
    ids, labels, positions = batch["input_ids"], batch["labels"], batch["position_ids"]
    longer["input_ids"] = nn.functional.pad(ids, (0, missing))
    longer["labels"] = nn.functional.pad(labels, (0, missing), value=IGNORE_INDEX)
    more = torch.arange(missing, device=positions.device).expand(len(positions), -1)
    longer["position_ids"] = torch.cat([positions, more], dim=1)
    if "cu_seq_lens_q" in batch:
        ends = batch["cu_seq_lens_q"]
        ends = torch.cat([ends, ends[-1:] + missing])
        longer["cu_seq_lens_q"] = longer["cu_seq_lens_k"] = ends
        longer["max_length_q"] = longer["max_length_k"] = max(batch["max_length_q"], missing)
    return longer


def _mask_function(positions: Int[Tensor, "batch seq"], window: int | None) -> MaskFunction:
    """Return "may query q see key k?" for whole sequences of packed examples."""
    follows = positions[:, 1:] == positions[:, :-1] + 1
    example = nn.functional.pad((~follows).cumsum(dim=1), (1, 0))
    masks = [causal_mask_function, packed_sequence_mask_function(example)]
    if window is not None:
        masks.append(sliding_window_overlay(window))
    combined: MaskFunction = and_masks(*masks)
    return combined
