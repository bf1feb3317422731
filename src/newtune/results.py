"""What follows a run: merge its adapter, evaluate its result, load it to answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor

from newtune.config.run import RunConfig
from newtune.data.prepare import PreparedData
from newtune.data.stream.prepare import StreamedData
from newtune.distributed.world import World
from newtune.errors import DataError, ExportError
from newtune.model.generate import generate_greedy
from newtune.model.head import compute_loss_sum
from newtune.model.quantization import require_library
from newtune.model.self_check import require_isolation
from newtune.model.tokenizer import load_tokenizer, read_tokenizer
from newtune.outputs.base_files import open_base
from newtune.outputs.conversation import stop_ids
from newtune.outputs.load import (
    Loaded,
    Which,
    choose_result,
    load_folder,
    load_result,
    load_trained,
    load_untrained,
    trained_system_message,
)
from newtune.outputs.merge import Merged, merge_adapter, require_mergeable
from newtune.outputs.report import report_run
from newtune.outputs.requantize import Form, quantize_merged
from newtune.plan.facts import Dtype
from newtune.plan.parts import Plan
from newtune.prepare import (
    model_side,
    prepare,
    training_data,
)
from newtune.run_dir import RunDir
from newtune.training.evaluation import (
    GENERATION_ROWS,
    GenerationResult,
    evaluate_generation,
    evaluate_loss,
    generation_tasks,
)
from newtune.types import Batch


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on the held-out rows."""

    which: Which
    """merged, adapter, model or base."""
    source: str
    scores: Mapping[str, float]
    """`eval_loss` in nats per trained token, `eval_perplexity`, `eval_trained_tokens`."""
    answers: GenerationResult | None
    """Greedy answers, with `eval_generate`."""


def merge(
    config: RunConfig,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    keep: bool = False,
    quantize: Form | None = None,
) -> Merged:
    """Merge a run's adapter into its base, verified on held-out rows, into `output_dir/merged`.

    The dtype is the given one, else `merged_dtype`, else the base checkpoint's. A GGUF base has
    none once it is dequantised: then it is the training's. `quantize`: once more, in few bits.
    """
    if quantize is not None:
        require_library("bitsandbytes")
    run_dir = RunDir(Path(config.output.output_dir))
    require_mergeable(run_dir, base_source=config.model.base_model, overwrite=overwrite)
    prepared = prepare(config)
    plan, data, adapter = prepared.plan, prepared.data, prepared.plan.adapter
    if adapter is None:
        raise ExportError("this configuration trains the whole model: there is nothing to merge")
    quantization = plan.model.quantization
    rows = data.evaluation or data.train
    source = "held-out rows" if data.evaluation else "training rows (none are held out)"
    load = partial(load_trained, plan.model, adapter, run_dir.root, prepared.tokenizer)
    merged = merge_adapter(
        load,
        prepared.tokenizer_with_template,
        run_dir,
        rows,
        source=source,
        base_source=plan.model.source,
        open_base=partial(open_base, plan.model, prepared.tokenizer),
        load_to_merge=partial(load, dequantized=True) if quantization else None,
        load_base=partial(load_untrained, plan.model, prepared.tokenizer),
        adapter_dtype=plan.model.precision.trained_weights,
        quantization=quantization,
        placement=plan.model.placement,
        dtype=dtype
        or plan.output.merged_dtype
        or plan.model_facts.checkpoint_dtype
        or plan.model.precision.frozen_weights,
        overwrite=overwrite,
        keep=keep,
    )
    if quantize is not None:
        tokenizer, device = prepared.tokenizer_with_template, plan.model.device
        folder, loss = quantize_merged(
            merged.folder, rows, tokenizer, form=quantize, device=device, source=source
        )
        merged = replace(merged, quantized=folder, quantizing_loss=loss)
    report_run(run_dir, plan)
    return merged


def evaluate(config: RunConfig, *, which: Which | None = None) -> Evaluation:
    """Measure the loss and, with `eval_generate`, exact match on the held-out rows.

    `which`: merged, adapter, model or base; None takes the best that the run's folder holds.
    """
    run_dir = RunDir(Path(config.output.output_dir))
    choose_result(run_dir, which)
    if not (config.data.test_datasets or config.data.val_set_size):
        raise DataError("no rows are held out: give `test_datasets` or `val_set_size`")
    prepared = prepare(config)
    plan, data = prepared.plan, prepared.data
    if data.evaluation is None:
        raise DataError("no rows are held out: `val_set_size` is too small for this data")
    tokenizer = prepared.tokenizer_with_template
    loaded = load_result(plan.model, plan.adapter, run_dir, tokenizer, which=which)
    batches = training_data(prepared).evaluation
    assert batches is not None
    device = plan.model.device
    if plan.model.packed:
        require_isolation(loaded.model, autocast=loaded.autocast)
    with loaded.arithmetic():
        ready = (on_device(batches[index], device) for index in range(len(batches)))
        scores = evaluate_loss(loaded.model, ready, compute_loss_sum)
    return Evaluation(loaded.which, loaded.source, scores, _answers(plan, data, loaded))


def load_for_inference(config: RunConfig, *, which: Which | None = None) -> Loaded:
    """Load a run's result to answer with: merged if there, else adapter over base, else model."""
    run_dir = RunDir(Path(config.output.output_dir))
    choose_result(run_dir, which)
    world = World.alone()
    side = model_side(config, world)
    tokenizer = load_tokenizer(config.tokenizer, config.model)
    if (run_dir.root / "tokenizer_config.json").is_file():
        tokenizer = read_tokenizer(str(run_dir.root))
    loaded = load_result(side.model, side.adapter, run_dir, tokenizer, which=which)
    return replace(loaded, system=trained_system_message(run_dir))


def load_folder_for_inference(folder: Path) -> Loaded:
    """Load a whole model from a folder that is no run's, such as `merged/` on its own."""
    return load_folder(folder, device=World.alone().device)


def _answers(
    plan: Plan, data: PreparedData | StreamedData, loaded: Loaded
) -> GenerationResult | None:
    evaluation = plan.training.evaluation
    if not evaluation.generate or data.evaluation is None:
        return None
    stops = stop_ids(loaded)
    tasks = generation_tasks(data.evaluation, stop_ids=stops, limit=evaluation.generate_examples)

    def answer(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return generate_greedy(
            loaded.model,
            loaded.tokenizer,
            prompts,
            max_new_tokens=evaluation.max_new_tokens,
            batch_size=GENERATION_ROWS,
            stop_ids=stops,
        )

    def decode(ids: Sequence[int]) -> str:
        return str(loaded.tokenizer.decode(list(ids), skip_special_tokens=True))

    return evaluate_generation(tasks, answer, decode)


def on_device(batch: Batch, device: str) -> Batch:
    """Return the batch with its tensors on the device."""
    moved = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    return cast("Batch", moved)
