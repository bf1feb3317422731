"""Fold an adapter into its base, write the result, and prove that it is what was trained.

Where the base's files allow it this goes shard by shard (`merge_shards.py`), else over the whole
model in memory; both take the same sums. The base is taken as the training saw it (same dtype,
same dequantisation), because that is the model the adapter corrects; each adapted weight is
widened to float32, the adapter added, and the sum rounded once to the dtype of the result. The
folder appears only when the proof holds.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from newtune.errors import ExportError, ModelError
from newtune.logs import logger, notice
from newtune.model.placement import placed_loading
from newtune.outputs.base_files import BaseFiles
from newtune.outputs.base_identity import changes_base, identify_base
from newtune.outputs.merge_shards import merge_shards
from newtune.outputs.predictions import Examples
from newtune.outputs.requantize import QuantizingLoss
from newtune.outputs.save import (
    ADAPTER_CONFIG,
    TOKENIZER_BYTES,
    Written,
    read_manifest,
    require_whole_model,
    write_manifest,
    write_model,
    write_tokenizer,
)
from newtune.outputs.shards import NeedsWholeModel
from newtune.outputs.staging import damaged_files, move_folder, require_space, staging_folder
from newtune.outputs.verify import (
    VERIFICATION,
    MergeReport,
    compare_merged,
    over_exact_layers,
    read_reference,
    with_base,
)
from newtune.plan.facts import Dtype
from newtune.plan.parts import PlacementPlan, QuantizationPlan
from newtune.run_dir import ADAPTER_WEIGHTS, FULL_WEIGHTS, RunDir, write_json


@dataclass(frozen=True)
class Merged:
    """A merged model on the disk and its proof."""

    folder: Path
    report: MergeReport
    parameters: int
    quantized: Path | None = None
    """The folder of the same model in few bits, where that was asked for."""
    quantizing_loss: QuantizingLoss | None = None


def merge_adapter(
    load_trained: Callable[[], PeftModel],
    tokenizer: PreTrainedTokenizerBase,
    run_dir: RunDir,
    examples: Examples,
    *,
    base_source: str,
    dtype: Dtype,
    open_base: Callable[[], BaseFiles] | None = None,
    load_to_merge: Callable[[], PeftModel] | None = None,
    load_base: Callable[[], PreTrainedModel] | None = None,
    adapter_dtype: Dtype = "float32",
    quantization: QuantizationPlan | None = None,
    placement: PlacementPlan | None = None,
    source: str = "held-out rows",
    overwrite: bool = False,
    keep: bool = False,
) -> Merged:
    """Merge the adapter at the root of a run's folder into `merged/`, verified.

    `load_trained` gives base + adapter as `load.load_trained` does; it is called once, after
    the cheap refusals, and once more where the base cannot be merged shard by shard from the
    files that `open_base` opens. `load_to_merge` then gives the same over ordinary layers, for
    a base in `quantization`, whose own layers cannot take the adapter in; `placement` says
    where the models lie. `load_base` gives
    the base as it was, for adapters that change its weights. `keep` keeps a
    merged model that fails its proof, marked as such, instead of removing it (the call raises
    either way).

    Raises:
        ExportError: there is no adapter to merge; it belongs to another base; merged/ exists
            (without `overwrite`); it does not fit on the disk; the proof fails.
    """
    require_mergeable(run_dir, base_source=base_source, overwrite=overwrite)
    trained = load_trained()
    require_same_base(trained, run_dir.root, base_source=base_source)
    width = getattr(torch, dtype).itemsize
    require_space(run_dir.root, trained.num_parameters() * width + TOKENIZER_BYTES)
    attention = trained.config._attn_implementation
    places = placed_loading(placement) if placement else {"device_map": {"": trained.device}}
    with staging_folder(run_dir.root) as kept, staging_folder(run_dir.root) as stage:
        reference = read_reference(trained, examples, source=source, folder=kept)
        changed = changes_base(trained)
        del trained  # from here on, one shard; for the comparison, one model
        if quantization is not None and quantization.rounds_inputs and load_to_merge is not None:
            reference = over_exact_layers(reference, load_to_merge(), folder=kept)
        if changed and load_base is not None:
            reference = with_base(reference, load_base(), folder=kept)
        written = None
        if open_base is not None:
            written = _write_by_shard(open_base, run_dir.root, stage, dtype, adapter_dtype)
        if written is None:
            model = merge_layers((load_to_merge or load_trained)(), dtype)
            written = write_model(model, stage, dtype=None)
            del model
        write_tokenizer(tokenizer, stage)
        merged = _load_written(stage, dtype, attention=attention, places=places)
        report = compare_merged(reference, merged, dtype=dtype, quantization=quantization)
        write_json(stage / VERIFICATION, report.as_dict())
        write_manifest(stage, "merged", written)
        if report.passed or keep:
            move_folder(stage, run_dir.merged)
    _require_passed(report, run_dir.merged, keep=keep)
    return Merged(run_dir.merged, report, written.parameters)


def _write_by_shard(
    open_base: Callable[[], BaseFiles], adapter: Path, stage: Path, dtype: Dtype, stored: Dtype
) -> Written | None:
    """Write the merged weights shard by shard, or say why not and leave `stage` empty."""
    try:
        model = merge_shards(open_base(), adapter, stage, dtype=dtype, adapter_dtype=stored)
    except NeedsWholeModel as reason:
        notice(f"the whole base is loaded to merge, not one shard at a time: {reason}")
        for path in stage.iterdir():
            path.unlink()
        return None
    return Written(require_whole_model(type(model), stage), dtype)


def require_mergeable(run_dir: RunDir, *, base_source: str, overwrite: bool) -> None:
    """Check what can be checked without the model: an adapter is there, and room for its merge.

    Raises:
        ExportError: with what is there instead.
    """
    require_adapter(run_dir.root, base_source=base_source)
    require_free(run_dir.merged, overwrite=overwrite)


def require_adapter(folder: Path, *, base_source: str) -> None:
    """Refuse a folder without a whole adapter made for `base_source`; reads no weights.

    Raises:
        ExportError: with what is there instead.
    """
    if any((folder / name).is_file() for name in FULL_WEIGHTS):
        raise ExportError(f"{folder} holds a fully trained model, not an adapter: nothing to merge")
    missing = [n for n in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / n).is_file()]
    if missing:
        raise ExportError(
            f"no adapter in {folder} ({', '.join(missing)} missing). Train first, or give the "
            "output_dir of a finished run."
        )
    manifest = read_manifest(folder)
    if manifest is None:
        return
    damaged = damaged_files(folder, manifest.files)
    weights = [name for name in damaged if name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    if weights:
        raise ExportError(f"{', '.join(weights)} in {folder} is not what the training wrote")


def require_free(merged: Path, *, overwrite: bool) -> None:
    """Refuse to replace an earlier merged model unasked."""
    if merged.exists() and not overwrite:
        raise ExportError(f"{merged} exists already. Replace it with `--overwrite`.")


def require_same_base(trained: PeftModel, folder: Path, *, base_source: str) -> None:
    """Refuse an adapter on a base other than its own, told by the weights where they are recorded.

    Raises:
        ExportError: names both bases.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.base is not None:
        now = identify_base(trained, source=base_source, revision=None)
        if now.weights == manifest.base.weights:
            return
        detail = "" if now.dtype == manifest.base.dtype else f" as {now.dtype}"
        raise ExportError(
            f"the weights of {base_source}{detail} are not those that the adapter was trained on "
            f"({manifest.base.source}, {manifest.base.dtype}, revision "
            f"{manifest.base.revision or 'not given'}). Merge with the base of the training."
        )
    recorded = trained.peft_config["default"].base_model_name_or_path or ""
    if recorded and Path(recorded).name != Path(base_source).name:
        raise ExportError(
            f"the adapter in {folder} was trained on {recorded}, not on {base_source}. "
            f"Set `base_model: {recorded}`."
        )


def merge_layers(trained: PeftModel, dtype: Dtype) -> PreTrainedModel:
    """Return the base with the adapter folded in, in `dtype`; `trained` is used up.

    Each sum is taken in float32 and rounded once; only one layer is wide at a time.

    Raises:
        ModelError: a sum is not finite.
    """
    _untie_where_adapted(trained)
    target: torch.dtype = getattr(torch, dtype)
    for module in list(trained.modules()):
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer().to(torch.float32)
        try:
            module.merge(safe_merge=True)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the adapter cannot be merged: {error}") from error
        base.to(target)
    with warnings.catch_warnings():
        # PEFT finds the sums taken above and says so, and that it has set tie_word_embeddings.
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        model = cast("PreTrainedModel", trained.merge_and_unload())
    for parameter in model.parameters():
        parameter.data = parameter.data.to(target)
    return model


def _untie_where_adapted(trained: PeftModel) -> None:
    """Give the head a weight of its own where LoRA corrects only one user of a tied matrix.

    PEFT adds the correction to the shared matrix, which would correct both.
    """
    base = cast("PreTrainedModel", trained.get_base_model())
    embedding: nn.Module = base.get_input_embeddings()
    head: nn.Module = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    if embedding.weight is not head.weight:
        return
    if not (isinstance(embedding, LoraLayer) or isinstance(head, LoraLayer)):
        return
    plain = head.get_submodule("base_layer") if isinstance(head, LoraLayer) else head
    shared = plain.get_parameter("weight")
    plain.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = False


def _load_written(
    stage: Path, dtype: Dtype, *, attention: str, places: dict[str, Any]
) -> PreTrainedModel:
    """Load what lies on the disk, with plain transformers."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        stage,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        **places,
    )
    return model


def _require_passed(report: MergeReport, merged: Path, *, keep: bool) -> None:
    if report.passed:
        return
    faults = "; ".join(report.problems)
    fate = f"{merged} is kept, marked as failed in {VERIFICATION}" if keep else "it was removed"
    remedy = "" if report.dtype == "float32" else " `--dtype float32` rounds nothing away."
    logger.error("merge refused: %s", faults)
    raise ExportError(f"the merged model is not what was trained: {faults}; {fate}.{remedy}")
