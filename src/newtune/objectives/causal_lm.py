"""Next-token prediction: which tokens are scored, and the loss in its plain form.

The trainer divides by `trained_tokens` of the whole step. The fused loss of the output head must
equal `causal_lm_loss`, which needs all logits at once.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from newtune.types import IGNORE_INDEX


def trained_tokens(labels: Int[Tensor, "batch seq"]) -> Int[Tensor, ""]:
    """Count the labels that are scored: all but IGNORE_INDEX and the first of each sequence.

    The first position has no prediction before it. That the first token of a *later* example in
    a pack is not trained is the data's duty.
    """
    return (labels[:, 1:] != IGNORE_INDEX).sum()


def causal_lm_loss(
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of -log p(label) in nats over the trained tokens, in float32, and their count.

    `labels[:, t]` is scored against `logits[:, t - 1]`.
    """
    loss_sum = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    return loss_sum, trained_tokens(labels)
