"""Load what a run produced: its merged model, its adapter over the base, or the bare base."""

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from newtune.errors import ExportError
from newtune.logs import notice
from newtune.model.adapters import attach_adapter
from newtune.model.angles import angles_by_example
from newtune.model.head import install_head
from newtune.model.load import grow_embeddings, load_base, store_trained_as
from newtune.model.placement import bring_in_place, placed_loading
from newtune.outputs.verify import VERIFICATION
from newtune.plan.parts import AdapterPlan, ModelPlan, PlacementPlan
from newtune.run_dir import ADAPTER_WEIGHTS, FULL_WEIGHTS, RunDir

Which = Literal["merged", "adapter", "model", "base"]


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, with its tokenizer."""

    model: PreTrainedModel | PeftModel
    tokenizer: Tokenizer
    which: Which
    source: str
    autocast: torch.dtype | None = None
    system: str | None = None
    """The system message that all of the training's conversations began with."""

    def arithmetic(self) -> contextlib.AbstractContextManager[object]:
        """Return the context to compute in: the autocast of the training, where it had one."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.autocast)


def available(run_dir: RunDir) -> list[Which]:
    """Return what a run's folder holds, the most useful first."""
    found: list[Which] = []
    if _is_proven(run_dir.merged):
        found.append("merged")
    if (run_dir.root / ADAPTER_WEIGHTS).is_file():
        found.append("adapter")
    if any((run_dir.root / name).is_file() for name in FULL_WEIGHTS):
        found.append("model")
    return found


def choose_result(run_dir: RunDir, which: Which | None) -> Which:
    """Return what to load of a run's folder: what was asked for, else the most useful.

    Raises:
        ExportError: the folder does not hold it.
    """
    found = available(run_dir)
    if which == "base" or which in found:
        return which
    if which is None and found:
        return found[0]
    holds = ", ".join(found) or "no trained weights"
    raise ExportError(
        f"{run_dir.root} holds {holds}{f', not: {which}' if which else ''}. "
        f"{'Run `newtune merge` first.' if which == 'merged' else 'Run `newtune train` first.'}"
    )


def load_result(
    plan: ModelPlan,
    adapter: AdapterPlan | None,
    run_dir: RunDir,
    tokenizer: Tokenizer,
    *,
    which: Which | None = None,
) -> Loaded:
    """Load a run's result; None takes the merged model, else the adapter or the whole model.

    `tokenizer` is the run's; a merged or whole model brings its own.

    Raises:
        ExportError: the folder does not hold what was asked for.
    """
    which = choose_result(run_dir, which)
    if which == "merged" or which == "model":
        folder = run_dir.merged if which == "merged" else run_dir.root
        return load_folder(
            folder,
            device=plan.device,
            placement=plan.placement,
            which=which,
            trust_remote_code=plan.trust_remote_code,
        )
    autocast = plan.precision.autocast
    compute = getattr(torch, autocast) if autocast else None
    if which == "base" or adapter is None:
        base = load_untrained(plan, tokenizer)
        return Loaded(base, tokenizer, "base", plan.source, compute)
    model = load_trained(plan, adapter, run_dir.root, tokenizer)
    return Loaded(model, tokenizer, "adapter", str(run_dir.root), compute)


def load_folder(
    folder: Path,
    *,
    device: str,
    placement: PlacementPlan | None = None,
    which: Which = "model",
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a whole model and its tokenizer from a folder, in the dtype it was saved in.

    Raises:
        ExportError: the folder holds no model.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=trust_remote_code,
            **(placed_loading(placement) if placement else {"device_map": {"": device}}),
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, SafetensorError) as error:
        raise ExportError(f"{folder} holds no model that can be loaded: {error}") from error
    install_head(model)
    angles_by_example(model)
    model.train(mode=False)
    return Loaded(model, tokenizer, which, str(folder))


def load_trained(
    plan: ModelPlan,
    adapter: AdapterPlan,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    dequantized: bool = False,
) -> PeftModel:
    """Return base + adapter, unmerged: the base as the training saw it, the adapter as saved.

    With `dequantized`, a quantised base's layers are ordinary ones, to merge into.
    """
    # On the CPU, as in training: what PiSSA samples from the weights is not the same on a GPU.
    base = _base_to_adapt(plan, tokenizer, dequantized=dequantized)
    model = attach_adapter(base, replace(adapter, continue_from=str(folder)))
    store_trained_as(model, getattr(torch, plan.precision.trained_weights))
    for parameter in model.parameters():
        parameter.requires_grad = False
    bring_in_place(model, plan)
    model.train(mode=False)
    return model


def load_untrained(plan: ModelPlan, tokenizer: Tokenizer) -> PreTrainedModel:
    """Return the base as the training saw it before its first step, on its device."""
    model = _base_to_adapt(plan, tokenizer)
    bring_in_place(model, plan)
    model.train(mode=False)
    return model


def _base_to_adapt(
    plan: ModelPlan, tokenizer: Tokenizer, *, dequantized: bool = False
) -> PreTrainedModel:
    if plan.attention.startswith(("flash_attention", "flex_attention")):
        plan = replace(plan, attention="sdpa")  # they take no float32, or no single new token
    model = load_base(plan, dequantized=dequantized)
    grow_embeddings(model, len(tokenizer), multiple=plan.embedding_multiple)
    install_head(model)
    angles_by_example(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model


def trained_system_message(run_dir: RunDir) -> str | None:
    """Return the system message that the datasets of a run share; None if they share none."""
    if not run_dir.data_file.is_file():
        return None
    counts = json.loads(run_dir.data_file.read_text(encoding="utf-8"))
    messages = {count.get("system") for count in counts}
    return messages.pop() if len(messages) == 1 else None


def _is_proven(merged: Path) -> bool:
    proof = merged / VERIFICATION
    if not proof.is_file():
        return False
    passed = bool(json.loads(proof.read_text(encoding="utf-8"))["passed"])
    if not passed:
        notice(f"{merged} failed its verification and is not used")
    return passed
