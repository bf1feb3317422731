"""Compare a merged model, as it lies on the disk, with the base + adapter that it was made from.

Three models answer the same held-out sequences, one model in memory at a time:

    adapter   base + adapter as trained: the base in the dtype of the training, the adapter as saved
    base      the same with the adapter switched off
    merged    what a user will load

All three compute in float32 whatever dtype their weights are stored in, so the numbers show what
merging and rounding did to the weights, and not the noise of 16-bit arithmetic. Compared are the
predictions of the trained tokens (teacher-forced): that is where the adapter was taught to differ.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from newtune.errors import ExportError
from newtune.outputs.predictions import (
    Examples,
    KeptLogits,
    choose_examples,
    trained_logits,
)
from newtune.plan.facts import Dtype
from newtune.plan.parts import Method, QuantizationPlan
from newtune.types import Example

VERIFICATION = "verification.json"

KEPT_LOGITS_BYTES = 512 << 20
"""Room, on the disk of the run, for the logits of adapter and base while the merged model loads."""

MOST_POSITIONS = 640
"""Predictions compared in all: six unequal ones still pass 99 %, and a model of 135M parameters on
two CPU cores needs some 10 s for each of the three models."""

POSITIONS_PER_CHUNK = 64
"""Predictions compared at a time; in float64, so that a KL of 1e-10 is not lost in rounding."""


@dataclass(frozen=True)
class Bound:
    """What a merge must keep to be called the same model."""

    kl_share: float
    """Most that KL(adapter‖merged) may be, as a share of KL(adapter‖base)."""
    equal_greedy: float
    """Least share of positions where both prefer the same token."""


BOUNDS: Mapping[Dtype, Bound] = {
    # Nothing is rounded but the sum itself (24 bits), so only the order of additions differs.
    "float32": Bound(kl_share=1e-4, equal_greedy=0.999),
    # 11 bits: eight times finer than bfloat16; KL falls with the square of the rounding.
    "float16": Bound(kl_share=1e-3, equal_greedy=0.995),
    # 8 bits: each merged weight is off by up to 1/512 of itself. Where that is no small part of
    # what the adapter changed, the merge is refused: ask for float32 or train longer.
    "bfloat16": Bound(kl_share=1e-2, equal_greedy=0.99),
}


@dataclass(frozen=True)
class MergeReport:
    """How close the merged model is to base + adapter; KL in nats per predicted token."""

    rows: int
    positions: int
    """Predictions of trained tokens that were compared."""
    source: str
    """Where the rows come from."""
    dtype: Dtype
    """Of the merged weights."""
    largest_logit_difference: float
    kl_merged: float
    """Mean KL(adapter‖merged)."""
    kl_base: float
    """Mean KL(adapter‖base)."""
    equal_greedy: float
    """Share of positions where adapter and merged prefer the same token."""
    equal_greedy_base: float
    """The same of adapter and base: how much the adapter changes."""
    largest_difference_to_base: float
    """Of the merged model's logits."""
    base_bits: int | None = None
    """Bits in which the base was stored in training; None = not quantised."""
    base_method: Method | None = None
    """Whose layers stored it so."""
    base_rounds_inputs: bool = False
    kl_as_trained: float | None = None
    """`kl_merged`, but with the base's own layers where they round what goes into them. The merged
    model's do not, so there all else is measured with the same weights in layers that do not."""
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether the merged model may be used in place of base + adapter."""
        return not self.problems

    @property
    def kl_share(self) -> float:
        """Return KL(adapter‖merged) as a share of KL(adapter‖base)."""
        return self.kl_merged / self.kl_base if self.kl_base else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """Return what verification.json holds: the numbers, the bound and the verdict."""
        verdict = {"passed": self.passed, "kl_share": self.kl_share}
        return {**verdict, **asdict(self), "bound": asdict(self.bound)}

    @property
    def bound(self) -> Bound:
        """Return what this merge must keep."""
        return BOUNDS[self.dtype]


@dataclass(frozen=True)
class Reference:
    """What base + adapter and the bare base predict, kept while the merged model is loaded."""

    examples: tuple[Example, ...]
    adapter: Iterable[Float[Tensor, "positions vocab"]]
    base: Iterable[Float[Tensor, "positions vocab"]]
    source: str
    rounding: Iterable[Float[Tensor, "positions vocab"]] | None = None
    """Of base + adapter as trained, where its layers round what goes into them and `adapter` and
    `base` come from layers that do not."""


def verify_merge(
    load_trained: Callable[[], PeftModel],
    load_merged: Callable[[], PreTrainedModel],
    examples: Examples,
    *,
    dtype: Dtype,
    source: str = "held-out rows",
) -> MergeReport:
    """Return the comparison of both models; `report.passed` is the verdict.

    Loads one after the other: base + adapter, unmerged, then the merged model from its folder.

    Raises:
        ExportError: no row has a trained token to compare.
    """
    trained = load_trained()
    reference = read_reference(trained, examples, source=source)
    del trained
    return compare_merged(reference, load_merged(), dtype=dtype)


def read_reference(
    trained: PeftModel,
    examples: Examples,
    *,
    source: str = "held-out rows",
    folder: Path | None = None,
) -> Reference:
    """Return what base + adapter and the bare base predict for as many rows as room is given to.

    The logits lie in `folder`, without one in memory.

    Raises:
        ExportError: no row has a trained token to compare.
    """
    vocabulary = trained.get_output_embeddings().weight.shape[0]
    fits = KEPT_LOGITS_BYTES // (2 * 4 * vocabulary)
    chosen = choose_examples(examples, most=min(fits, MOST_POSITIONS))
    if not chosen:
        raise ExportError(
            f"the merge cannot be verified: no trained token among the {len(examples)} {source}. "
            "Give rows to compare on (`val_set_size` or `test_datasets`)."
        )
    adapter = _kept(trained_logits(trained, chosen), folder, "adapter")
    with trained.disable_adapter():
        base = _kept(trained_logits(trained, chosen), folder, "base")
    return Reference(tuple(chosen), adapter, base, source)


def with_base(
    reference: Reference, base: PreTrainedModel, *, folder: Path | None = None
) -> Reference:
    """Return the reference with what a base predicts that no adapter has changed.

    Some adapters take a part out of the base's weights (PiSSA): without them it is not the base.
    """
    logits = trained_logits(base, reference.examples)
    return replace(reference, base=_kept(logits, folder, "untouched"))


def over_exact_layers(
    reference: Reference, exact: PeftModel, *, folder: Path | None = None
) -> Reference:
    """Return the reference of the same adapter over the same weights in layers that round nothing.

    Such are the merged model's layers, so that what is compared is the merge alone; what the
    rounding of the trained layers makes of it is a number beside it.
    """
    adapter = _kept(trained_logits(exact, reference.examples), folder, "exact-adapter")
    with exact.disable_adapter():
        base = _kept(trained_logits(exact, reference.examples), folder, "exact-base")
    return replace(reference, adapter=adapter, base=base, rounding=reference.adapter)


def _kept(batches: Iterator[Tensor], folder: Path | None, name: str) -> Iterable[Tensor]:
    return list(batches) if folder is None else KeptLogits(folder, name, batches)


def compare_merged(
    reference: Reference,
    merged: PreTrainedModel,
    *,
    dtype: Dtype,
    quantization: QuantizationPlan | None = None,
) -> MergeReport:
    """Return the merged model's distance from base + adapter, with every bound it breaks."""
    sums = _Sums()
    predictions = trained_logits(merged, reference.examples)
    as_trained = reference.adapter if reference.rounding is None else reference.rounding
    kept = (reference.adapter, reference.base, as_trained)
    for adapter, base, trained, logits in zip(*kept, predictions, strict=True):
        if logits.shape != adapter.shape:
            raise ExportError(
                f"the merged model predicts {logits.shape[-1]} tokens, base + adapter "
                f"{adapter.shape[-1]}: the embeddings were not grown alike"
            )
        for start in range(0, len(logits), POSITIONS_PER_CHUNK):
            part = slice(start, start + POSITIONS_PER_CHUNK)
            sums.add(*(each[part].double() for each in (adapter, base, trained, logits)))
    report = MergeReport(
        rows=len(reference.examples),
        positions=sums.positions,
        source=reference.source,
        dtype=dtype,
        largest_logit_difference=sums.largest,
        kl_merged=sums.kl_merged / sums.positions,
        kl_base=sums.kl_base / sums.positions,
        kl_as_trained=sums.kl_as_trained / sums.positions,
        equal_greedy=sums.equal / sums.positions,
        equal_greedy_base=sums.equal_base / sums.positions,
        largest_difference_to_base=sums.largest_to_base,
        **_of_base(quantization),
    )
    return MergeReport(**{**asdict(report), "problems": tuple(broken_bounds(report))})


def _of_base(quantization: QuantizationPlan | None) -> dict[str, Any]:
    if quantization is None:
        return {}
    return {
        "base_bits": quantization.bits,
        "base_method": quantization.method,
        "base_rounds_inputs": quantization.rounds_inputs,
    }


def broken_bounds(report: MergeReport) -> Iterator[str]:
    """Yield what is wrong with a merge, in words; nothing when it is right."""
    bound = report.bound
    if not np.isfinite([report.largest_logit_difference, report.kl_merged, report.kl_base]).all():
        yield "the logits are not finite"
        return
    if report.kl_base == 0:
        yield "the adapter changes nothing: base + adapter predicts exactly what the base does"
        return
    if report.largest_difference_to_base == 0:
        yield "the merged model predicts exactly what the base does: the adapter was lost"
    if report.kl_share > bound.kl_share:
        yield (
            f"KL(adapter‖merged) is {report.kl_merged:.3g}, {report.kl_share:.2%} of "
            f"KL(adapter‖base) {report.kl_base:.3g}; at most {bound.kl_share:.2%} is allowed in "
            f"{report.dtype}"
        )
    if report.equal_greedy < bound.equal_greedy:
        yield (
            f"{report.equal_greedy:.2%} of the greedy tokens are equal; at least "
            f"{bound.equal_greedy:.1%} are asked for in {report.dtype}"
        )


@dataclass
class _Sums:
    """Running sums over positions."""

    positions: int = 0
    kl_merged: float = 0.0
    kl_base: float = 0.0
    kl_as_trained: float = 0.0
    equal: int = 0
    equal_base: int = 0
    largest: float = 0.0
    largest_to_base: float = 0.0

    def add(self, adapter: Tensor, base: Tensor, as_trained: Tensor, merged: Tensor) -> None:
        log_adapter = adapter.log_softmax(-1)
        self.positions += len(adapter)
        self.kl_merged += kl_sum(log_adapter, merged.log_softmax(-1))
        self.kl_base += kl_sum(log_adapter, base.log_softmax(-1))
        self.kl_as_trained += kl_sum(as_trained.log_softmax(-1), merged.log_softmax(-1))
        preferred = adapter.argmax(-1)
        self.equal += int((merged.argmax(-1) == preferred).sum())
        self.equal_base += int((base.argmax(-1) == preferred).sum())
        self.largest = _larger(self.largest, (adapter - merged).abs().max())
        self.largest_to_base = _larger(self.largest_to_base, (base - merged).abs().max())


def _larger(seen: float, value: Tensor) -> float:
    """Return the larger one; not-a-number wins and stays."""
    return float(torch.maximum(torch.tensor(seen, dtype=value.dtype), value))


def kl_sum(log_p: Tensor, log_q: Tensor) -> float:
    """Return the sum over positions of KL(p‖q) in nats."""
    return float((log_p.exp() * (log_p - log_q)).sum())
