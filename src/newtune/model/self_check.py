"""Measurements on the loaded model itself, before its first step.

Is newtune's loss that of the model's own logits? Do packed examples see each other? Does a
sequence that processes share have the loss of a whole one? A family that nobody has seen yet
answers, in a few forwards of 13 tokens. None of the model's weights,
buffers and random states is touched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from newtune.errors import ModelError
from newtune.logs import notice
from newtune.model.head import base_model, compute_loss_sum, forward_inputs
from newtune.model.logits import FACTORS, SOFTCAPS
from newtune.types import Batch

Model = PreTrainedModel | PeftModel

LENGTHS = (7, 6)
"""Of two examples, A and B."""
LEAK_IN_FLOAT32 = 0.01
"""Tiny models of 60 families: isolated up to 3e-6, leaking from 0.11 (Falcon-H1) to 1.1."""
LEAK_IN_FEW_BITS = 0.1
"""16-bit and quantised products round otherwise in a row of another length: seen up to 0.022."""
LOSS_IN_FLOAT32 = 1e-4
LOSS_IN_FEW_BITS = 0.03
"""Share of the loss by which rounding may change it."""


def require_own_loss(model: Model, *, autocast: torch.dtype | None = None) -> None:
    """Refuse a model whose own logits give another loss than newtune's output head does.

    Raises:
        ModelError: with the numbers.
    """
    with _quietly(model, autocast):
        row = _row(model, [torch.arange(sum(LENGTHS))])
        batch: Any = {**row, "labels": row["input_ids"]}
        loss, count = compute_loss_sum(model, batch)
        own = F.cross_entropy(_forward(model, row)[:-1], row["input_ids"][0, 1:], reduction="sum")
    ours, theirs = float(loss / count), float(own / (sum(LENGTHS) - 1))
    most = LOSS_IN_FLOAT32 if _is_exact(model, autocast) else LOSS_IN_FEW_BITS
    if abs(ours - theirs) <= most * abs(theirs):
        return
    known = ", ".join(f"`{name}`" for name in (*SOFTCAPS, *FACTORS))
    raise ModelError(
        f"this `{base_model(model).config.model_type}` changes its logits after its output head in "
        f"a way newtune does not know: its own logits give a loss of {theirs:.5g} for a token, "
        f"newtune's head {ours:.5g}. Known are {known}."
    )


def require_shared_loss(
    model: Model,
    loss_sum: Callable[[Model, Batch], tuple[Tensor, Tensor]],
    *,
    autocast: torch.dtype | None = None,
) -> None:
    """Refuse a model whose loss of a sequence that processes share is not that of the whole.

    Raises:
        ModelError: with the numbers.
    """
    with _quietly(model, autocast):
        row = _row(model, [torch.arange(length) for length in LENGTHS])
        batch: Any = {**row, "labels": row["input_ids"]}
        whole, shared = compute_loss_sum(model, batch)[0], loss_sum(model, batch)[0]
    difference = float(abs(shared - whole) / whole)
    most = LOSS_IN_FLOAT32 if _is_exact(model, autocast) else LOSS_IN_FEW_BITS
    if difference <= most:
        notice(f"measured: a shared sequence has the loss of a whole one ({difference:.1e} apart)")
        return
    raise ModelError(
        f"this `{base_model(model).config.model_type}` cannot share a sequence: it gives a loss of "
        f"{float(shared):.5g}, the whole sequence {float(whole):.5g}. Leave "
        "`context_parallel_size` out."
    )


def require_isolation(model: Model, *, autocast: torch.dtype | None = None) -> None:
    """Refuse a model whose packed examples see each other.

    Raises:
        ModelError: with the numbers.
    """
    most = LEAK_IN_FLOAT32 if _is_exact(model, autocast) else LEAK_IN_FEW_BITS
    share = measure_leak(model, autocast=autocast)
    if share <= most:
        notice(f"measured: packed examples do not see each other ({share:.1e}; 1 would be all)")
        return
    config = base_model(model).config
    raise ModelError(
        f"packed examples of this `{config.model_type}` see each other with "
        f"`{config._attn_implementation}` attention: laid behind another example, one's "
        f"predictions change by {share:.0%} of what they would if it read on from it (at most "
        f"{most:.0%} is rounding). Set `sample_packing: false` and `batch_flattening: false`."
    )


def measure_leak(model: Model, *, autocast: torch.dtype | None = None) -> float:
    """Return the share of what seeing the other example would change, that packing does change.

    A and B are laid into one row as packing does it. What B's predictions there differ by from
    those of B alone is set against what they would differ by if B went on from A: root mean
    squares over the vocabulary, the largest share over B's positions.
    """
    first, second = LENGTHS
    one, other = torch.arange(first), torch.arange(second)
    with _quietly(model, autocast):
        apart = _forward(model, _row(model, [one, other]))[first:]
        as_one = _forward(model, _row(model, [torch.arange(first + second)]))[first:]
        alone = _forward(model, _row(model, [other], skip=first))
    noticed, whole = (apart - alone).square().mean(-1), (as_one - alone).square().mean(-1)
    return float((noticed / whole.clamp(min=1e-12)).max().sqrt())


def _row(model: Model, examples: list[Tensor], *, skip: int = 0) -> dict[str, Any]:
    """Return one row as the data has it; `examples` are positions, tokens follow from places."""
    device = _device(model)
    positions = torch.cat(examples)
    vocabulary = int(base_model(model).config.get_text_config().vocab_size)
    places = torch.arange(skip, skip + len(positions))
    lengths = [len(example) for example in examples]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return {
        "input_ids": ((places + 1) * 7919 % vocabulary)[None].to(device),
        "position_ids": positions[None].to(device),
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
        "max_length_q": max(lengths), "max_length_k": max(lengths),
    }  # fmt: skip


def _forward(model: Model, row: dict[str, Any]) -> Float[Tensor, "seq vocab"]:
    logits: Tensor = model(**forward_inputs(model, row), use_cache=False).logits
    return logits[0].float()


@contextmanager
def _quietly(model: Model, autocast: torch.dtype | None) -> Iterator[None]:
    """Without gradients, dropout and draws; every module is in the mode it was in afterwards."""
    device_type = _device(model).type
    arithmetic = torch.autocast(device_type, dtype=autocast) if autocast else nullcontext()
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(), arithmetic:
            yield
    finally:
        for module in training:
            module.training = True


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device  # the embeddings', which stand first


def _is_exact(model: Model, autocast: torch.dtype | None) -> bool:
    plain = {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    return plain and autocast is None
