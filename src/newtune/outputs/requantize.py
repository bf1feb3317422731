"""Quantise a merged model by bitsandbytes, and say what that lost, measured on what was written."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from newtune.errors import ExportError
from newtune.logs import notice
from newtune.model.quantization import knowing, settle
from newtune.outputs.predictions import Examples, KeptLogits, choose_examples, trained_logits
from newtune.outputs.save import Written, write_manifest, write_tokenizer
from newtune.outputs.shards import weight_files
from newtune.outputs.staging import move_folder, staging_folder
from newtune.outputs.verify import KEPT_LOGITS_BYTES, MOST_POSITIONS, kl_sum
from newtune.plan.parts import QuantizationPlan
from newtune.run_dir import write_json

Form = Literal["nf4", "fp4", "int8"]

FORMS: Mapping[Form, tuple[int, Mapping[str, Any]]] = {
    "nf4": (4, {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    "fp4": (4, {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}),
    "int8": (8, {}),
}
"""Name → bits, and options of transformers' BitsAndBytesConfig."""

REPORT = "quantization.json"


@dataclass(frozen=True)
class QuantizingLoss:
    """How far the quantised model is from the merged one; KL in nats per predicted token."""

    form: Form
    rows: int
    positions: int
    """Predictions of trained tokens that were compared."""
    source: str
    kl: float
    """Mean KL(merged‖quantised)."""
    equal_greedy: float
    """Share of positions where both prefer the same token."""
    largest_logit_difference: float
    bytes_merged: int
    bytes_quantized: int
    """Of the files of weights."""


def quantize_merged(
    merged: Path,
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    form: Form,
    device: str,
    source: str = "held-out rows",
) -> tuple[Path, QuantizingLoss]:
    """Write `merged-FORM` beside a merged model, over an older one; returns it and the loss.

    One model at a time is in memory; the loss is that of the files, read back.

    Raises:
        ExportError: nothing to compare on; the quantised model's logits are not finite.
    """
    target = merged.with_name(f"{merged.name}-{form}")
    with staging_folder(merged.parent) as kept, staging_folder(merged.parent) as stage:
        model = _load(merged, device)
        parameters, dtype = model.num_parameters(), str(model.dtype).removeprefix("torch.")
        fits = KEPT_LOGITS_BYTES // (4 * model.get_output_embeddings().weight.shape[0])  # type: ignore[no-untyped-call]
        chosen = choose_examples(examples, most=min(fits, MOST_POSITIONS))
        if not chosen:
            raise ExportError(f"no trained token among the {source}: nothing to compare on")
        expected = KeptLogits(kept, "merged", trained_logits(model, chosen))
        del model
        notice(f"quantising {merged} to {form}")
        _quantize(merged, stage, form, device)
        write_tokenizer(tokenizer, stage)
        bits, options = FORMS[form]
        model = _load(stage, device)
        settle(model, QuantizationPlan(bits, options, stored=True))
        distances = _distances(expected, trained_logits(model, chosen))
        sizes = {"bytes_merged": _bytes(merged), "bytes_quantized": _bytes(stage)}
        loss = QuantizingLoss(form, len(chosen), source=source, **distances, **sizes)
        write_json(stage / REPORT, asdict(loss))
        write_manifest(stage, "merged", Written(parameters, dtype))
        move_folder(stage, target)
    return target, loss


def _quantize(merged: Path, stage: Path, form: Form, device: str) -> None:
    bits, options = FORMS[form]
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, **options
    )
    _load(merged, device, quantization_config=config).save_pretrained(stage)


def _load(folder: Path, device: str, **options: Any) -> PreTrainedModel:
    with knowing():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, device_map={"": device}, dtype="auto", **options
        )
    return model


def _distances(expected: Iterable[Tensor], found: Iterable[Tensor]) -> dict[str, Any]:
    positions, equal, kl, largest = 0, 0, 0.0, 0.0
    for before, after in zip(expected, found, strict=True):
        one, other = before.double(), after.double()
        positions += len(one)
        kl += kl_sum(one.log_softmax(-1), other.log_softmax(-1))
        equal += int((one.argmax(-1) == other.argmax(-1)).sum())
        largest = max(largest, float((one - other).abs().max()))
    if not math.isfinite(kl):
        raise ExportError("the quantised model's logits are not finite; nothing was written")
    return {
        "positions": positions,
        "kl": kl / positions,
        "equal_greedy": equal / positions,
        "largest_logit_difference": largest,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))
