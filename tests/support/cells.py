"""What each column of the support table sees of one family, through newtune's entry points.

Every function takes the family's bench and returns a sentence that a footnote adds, or nothing.
What newtune refuses it raises itself; an AssertionError is a fault that nobody knew.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from bitsandbytes.nn import Linear4bit

from newtune.distributed.world import World
from newtune.errors import NewtuneError
from newtune.model.attention import register_attention
from newtune.model.head import head_name, install_head
from newtune.model.self_check import measure_leak
from newtune.plan.attention import PACKED_ATTENTION
from newtune.prepare import model_side
from newtune.results import merge
from support.bench import (
    ADAPTER,
    EPOCHS,
    STEPS_IN_EPOCH,
    Bench,
    batch_of,
    calls,
    examples,
    farthest,
    loss_and_gradients,
    zero_matrices,
)
from tiny import tiny_model
from tiny_quantized import save_quantized_checkpoint

Verdict = Literal["works", "refused", "not run", "fails"]


@dataclass(frozen=True)
class Cell:
    """What one run saw."""

    verdict: Verdict
    why: str = ""


def full(bench: Bench) -> str:
    """Every weight trains, the loss falls, and plain transformers reads what was saved."""
    losses = bench.train("full", save_strategy="steps", save_steps=STEPS_IN_EPOCH * 2)
    _falls(losses)
    before, after = bench.weights("base"), bench.weights("full")
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    return f"got no gradient: {_listed(still)}" if still else ""


def lora(bench: Bench) -> str:
    """It starts from the base's loss, every matrix trains, the loss falls."""
    return _adapter(bench, "lora")


def qlora(bench: Bench) -> str:
    """As LoRA, over linear layers that are stored in 4 bit."""
    more = _adapter(bench, "qlora", adapter="qlora")
    model, _ = bench.loaded("qlora-again", **{**ADAPTER, "adapter": "qlora"})
    stored = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert stored, "no layer is stored in 4 bit"
    return more


def gptq(bench: Bench) -> str:
    """As LoRA, over a checkpoint that GPTQ packed (by hand here), and its merge."""
    if find_spec("gptqmodel") is None:
        raise NotRunError("needs gptqmodel, which the ordinary environment has not")
    folder = bench.root / "gptq-base"
    save_quantized_checkpoint(folder, "gptq", bench.family)
    own = {"base_model": str(folder)}
    more = _adapter(bench, "gptq", **own)
    assert merge(bench.config("gptq", **{**ADAPTER, **own})).report.passed
    return more


def packing(bench: Bench) -> str:
    """Packs give the logits, the loss and the gradients that examples alone give."""
    try:
        prepared_plan = model_side(bench.config("packed", sample_packing=True), World.alone()).model
    except NewtuneError as refusal:
        share = _leak(bench)
        assert share > 0.01, f"refused, but packed examples do not see each other ({share:.1e})"
        raise NewtuneError(f"{refusal} Measured: {share:.2f} of 1.") from refusal
    _packs_as_alone(bench, prepared_plan.attention)
    return f"with `{prepared_plan.attention}` attention, which is what newtune takes on a CPU"


def checkpointing(bench: Bench) -> str:
    """Layers are computed twice, and the gradients are those without."""
    found = []
    for name, saving in {"keeping": False, "saving": True}.items():
        model, prepared = bench.loaded(name, gradient_checkpointing=saving)
        batch = batch_of([[one] for one in examples(prepared)])
        torch.manual_seed(1)
        with calls(model) as count:
            found.append((*loss_and_gradients(model, batch), count[0]))
    (loss, gradients, once), (same_loss, same_gradients, twice) = found
    assert twice > once, "nothing was computed anew"
    assert loss == same_loss
    difference = farthest(same_gradients, gradients)
    assert difference <= 1e-6, f"gradients differ by {difference:.1e} of the largest"
    return ""


def merged(bench: Bench) -> str:
    """The merged model passes its own proof, for LoRA and QLoRA."""
    for name, changes in {"lora": {}, "qlora": {"adapter": "qlora"}}.items():
        if (bench.root / name / "adapter_model.safetensors").is_file():
            result = merge(bench.config(name, **{**ADAPTER, **changes}))
            assert result.report.passed
    return ""


def resume(bench: Bench) -> str:
    """A run that goes on from a checkpoint ends bit for bit as the one that never stopped."""
    checkpoint = bench.root / "full" / f"checkpoint-{STEPS_IN_EPOCH * 2}"
    bench.train("resumed", resume_from_checkpoint=str(checkpoint))
    whole, rest = bench.weights("full"), bench.weights("resumed")
    assert whole.keys() == rest.keys()
    other = [name for name in whole if not torch.equal(whole[name], rest[name])]
    assert not other, f"other weights after resuming: {_listed(other)}"
    return ""


COLUMNS: Mapping[str, Callable[[Bench], str]] = {
    "full": full, "LoRA": lora, "QLoRA": qlora, "GPTQ": gptq, "packing": packing,
    "checkpointing": checkpointing, "merge": merged, "resume": resume,
}  # fmt: skip
"""Column → what fills it, in the order in which they need each other."""


class NotRunError(Exception):
    """A column that this machine or this version cannot try."""


def look(bench: Bench, column: str) -> Cell:
    """Return what one column sees."""
    try:
        return Cell("works", COLUMNS[column](bench))
    except NewtuneError as refusal:
        return Cell("refused", _sentence(str(refusal), bench))
    except NotRunError as reason:
        return Cell("not run", str(reason))
    except Exception as fault:  # noqa: BLE001  # whatever it is, the table is to show it
        return Cell("fails", _sentence(f"{type(fault).__name__}: {fault}", bench))


def look_at_family(bench: Bench, columns: list[str]) -> dict[str, dict[str, str]]:
    """Return column → cell as plain values."""
    return {column: asdict(look(bench, column)) for column in columns}


def _adapter(bench: Bench, name: str, **changes: str) -> str:
    losses = bench.train(name, **{**ADAPTER, **changes})
    _falls(losses)
    idle = zero_matrices(bench.weights(name))
    assert not idle, f"LoRA matrices that got no gradient: {_listed(idle)}"
    return ""


def _packs_as_alone(bench: Bench, attention: str) -> None:
    model, prepared = bench.loaded("packs", sample_packing=True, attn_implementation=attention)
    model.eval()
    one = examples(prepared)
    alone, separate = loss_and_gradients(model, *(batch_of([[example]]) for example in one))
    for packs in ([one], [one[:2], one[2:]]):
        together, gradients = loss_and_gradients(model, batch_of(packs))
        assert abs(together - alone) <= 1e-5 * abs(alone), (attention, together, alone)
        difference = farthest(gradients, separate)
        assert difference <= 1e-4, f"{attention}: gradients differ by {difference:.1e}"


def _leak(bench: Bench) -> float:
    register_attention()
    model = tiny_model(bench.family)
    assert head_name(model)
    install_head(model)
    return measure_leak(model)


def _falls(losses: list[float]) -> None:
    half = len(losses) // 2
    assert len(losses) in (4, STEPS_IN_EPOCH * EPOCHS)
    assert sum(losses[half:]) < sum(losses[:half]), f"the loss does not fall: {losses}"


def _listed(names: list[str]) -> str:
    shapes = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)
    return ", ".join(f"`{name}`" for name in shapes)


def _sentence(text: str, bench: Bench) -> str:
    first = " ".join(text.replace(str(bench.root), "").split())
    return first.replace("|", "/")[:400]


__all__ = ["COLUMNS", "PACKED_ATTENTION", "Cell", "look", "look_at_family"]
