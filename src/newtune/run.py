"""What there is to do with a configuration: train, merge, evaluate, answer.

`train_together` is the whole run on one page; `prepare.py` is the part before weights load.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import cast

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from newtune.config.run import RunConfig
from newtune.data.batches import TrainBatches
from newtune.data.prepare import PreparedData
from newtune.data.stream.batches import StreamedBatches
from newtune.data.stream.prepare import StreamedData
from newtune.distributed.agreement import code_digests, digests_of, require_agreement
from newtune.distributed.group import Group
from newtune.distributed.meeting import Meeting
from newtune.distributed.watch import Watch
from newtune.distributed.world import World, restarts
from newtune.errors import DataError, ExportError
from newtune.logs import logger, notice
from newtune.model.eva import start_from_data
from newtune.model.generate import generate_greedy
from newtune.model.head import compute_loss_sum
from newtune.model.load import fetch_weights, load_model
from newtune.model.relora import join_rounds
from newtune.model.self_check import require_isolation
from newtune.model.tokenizer import load_tokenizer, read_tokenizer
from newtune.outputs.base_files import open_base
from newtune.outputs.conversation import answer_ends, stop_ids
from newtune.outputs.dataset_upload import upload_data
from newtune.outputs.inputs import Inputs, keep_inputs, require_same_inputs
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
from newtune.outputs.report import RunReport, report_run, report_uploads
from newtune.outputs.requantize import Form
from newtune.outputs.save import save_final
from newtune.outputs.uploads import Uploads, open_uploads
from newtune.plan.mesh import require_processes
from newtune.plan.parallel import hang_timeout_of
from newtune.plan.parts import Dtype, Plan
from newtune.plan.plan import plan_as_dict
from newtune.prepare import (
    Prepared,
    counted_ahead,
    model_side,
    prepare,
    refuse_unread_keys,
    training_data,
)
from newtune.run_dir import RunDir, read_environment, write_json, write_yaml
from newtune.training.build import build_trainer
from newtune.training.checkpoint import require_same_rows
from newtune.training.evaluation import (
    GENERATION_ROWS,
    GenerationResult,
    evaluate_generation,
    evaluate_loss,
    generation_tasks,
)
from newtune.training.feed import TrainingData
from newtune.types import Batch

SAME_FILE = "Start every process with the same file and the same options."
ASK_TO_RESUME = frozenset({"resume_from_checkpoint", "auto_resume_from_checkpoints"})
"""Keys that a machine may have which is started later; what they lead to is compared."""
SAME_CODE = "Install the same versions on every machine."
SAME_FOLDER = (
    "`output_dir` must lie on a file system that every machine sees, and every process must be "
    "asked to resume, or none."
)
SAME_INPUTS = (
    "Every machine must read the same files, and the same revision of a hub (`revision_of_model`, "
    "`revision` of a dataset)."
)


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


def train(config: RunConfig) -> RunReport | None:
    """Run a fine-tuning from configuration to report.

    Every process of a launcher calls it; the first writes, and has the report. The process group
    that it makes stays, see `distributed.group.leave_group`.
    """
    world = World.current()
    require_processes(config, world)
    meeting = Meeting.join(world)
    with Watch(meeting, hang_timeout_of(config)) as watch:
        settings = {k: v for k, v in config.dump().items() if k not in ASK_TO_RESUME}
        require_agreement(meeting, "configuration", digests_of(settings), SAME_FILE)
        require_agreement(meeting, "code", code_digests(), SAME_CODE)
        return train_together(config, world, meeting, watch)


def train_together(
    config: RunConfig, world: World, meeting: Meeting, watch: Watch
) -> RunReport | None:
    """Train with the processes that have met, or alone."""
    group = Group.of(world, watch)
    if not world.is_main:
        logger.setLevel(WARNING)  # what the first process says need not be said again
    run_dir = RunDir(Path(config.output.output_dir))
    checkpoint = find_checkpoint(config, run_dir, meeting)
    prepared = prepare(config, world, trains=True)
    plan = prepared.plan
    refuse_unread_keys(config)
    watch.at("load")
    if checkpoint is not None:
        require_same_rows(checkpoint, plan.training.steps.rows_per_step)
    if reads_weights(prepared):
        fetch_weights(plan.model)
    uploads = open_uploads(plan, run_dir, prepared.tokenizer_with_template)
    if checkpoint is None:
        upload_data(plan.output.dataset_hub, prepared.data)
    if world.is_main:
        describe(run_dir, config, prepared)

    model = load(prepared)
    inputs = inputs_of(prepared, model, meeting, watch)
    require_agreement(meeting, "base and data", seen(prepared, inputs), SAME_INPUTS)
    if checkpoint is None:
        keep_inputs(run_dir.root, inputs)
    else:
        require_same_inputs(checkpoint.parent, inputs, source=plan.model.source)

    parallel = plan.training.parallel
    group = replace(group, sharers=parallel.mesh.sharers, twins=parallel.mesh.tensor)
    group.form(meeting, backend=parallel.backend, timeout_seconds=parallel.timeout_seconds)
    report = fit(prepared, model, run_dir, group, uploads, checkpoint=checkpoint)
    return report and report_uploads(run_dir, report, uploads.problems)


def find_checkpoint(config: RunConfig, run_dir: RunDir, meeting: Meeting) -> Path | None:
    """Return the checkpoint that the run goes on from: the same one for every process."""
    started_again = meeting.settle("restarts", restarts(), max) > 0
    checkpoint = run_dir.checkpoint_to_resume(
        config.output.resume_from_checkpoint if not started_again else None,
        automatic=config.output.auto_resume_from_checkpoints or started_again,
    )
    require_agreement(meeting, "checkpoint", {"to resume from": str(checkpoint)}, SAME_FOLDER)
    if checkpoint is not None:
        run_dir.require_same_config(config.dump())
    return checkpoint


def load(prepared: Prepared) -> PreTrainedModel | PeftModel:
    """Load the model that is trained, with its adapter."""
    plan = prepared.plan
    set_seed(plan.training.steps.seed)  # an adapter's first weights are drawn when it is made
    by_parts = plan.training.parallel.places_by_parts
    return load_model(
        replace(plan.model, device="cpu") if by_parts else plan.model,
        plan.adapter,
        tokenizer=prepared.tokenizer,
        new_token_ids=prepared.new_token_ids,
        empty=not reads_weights(prepared),
    )


def reads_weights(prepared: Prepared) -> bool:
    """Tell whether this process reads the base's weights, or gets its part from the first."""
    return prepared.world.is_main or not prepared.plan.training.parallel.loads_once


def inputs_of(
    prepared: Prepared, model: PreTrainedModel | PeftModel, meeting: Meeting, watch: Watch
) -> Inputs:
    """Return what the run begins with; where one process has read the base, it says which."""
    here = reads_weights(prepared)
    inputs = Inputs.of(model if here else None, prepared.plan.model, prepared.data)
    if not prepared.plan.training.parallel.loads_once:
        return inputs
    with watch.waiting():
        base, dtype = meeting.from_first("base", [inputs.base, inputs.base_dtype])
    return replace(inputs, base=base, base_dtype=dtype)


def fit(
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    run_dir: RunDir,
    group: Group,
    uploads: Uploads,
    *,
    checkpoint: Path | None,
) -> RunReport | None:
    """Take the steps of the plan and write the result; the first process has the report."""
    plan = prepared.plan
    batches = training_data(prepared, group)
    if checkpoint is None and plan.adapter is not None and plan.adapter.init == "eva":
        assert isinstance(model, PeftModel)
        assert isinstance(batches.train, TrainBatches)  # config/rules/adapter.py
        start_from_data(model, plan.adapter, batches.train, autocast=plan.model.precision.autocast)
    trainer = build_trainer(
        plan,
        model,
        prepared.tokenizer,
        batches,
        run_dir,
        stop_ids=answer_ends(model, prepared.tokenizer_with_template),
        group=group,
    )
    with uploads:
        uploads.follow(trainer)
        with closing(batches):
            trainer.train(resume_from_checkpoint=checkpoint)
        if plan.training.relora is not None:
            join_rounds(cast("PeftModel", model))
        with trainer.engine.whole("all") as whole:
            report = group.on_main(lambda: save_result(run_dir, whole, prepared, batches))
        if report is not None:
            uploads.add_result()
    return report


def seen(prepared: Prepared, inputs: Inputs) -> dict[str, str]:
    """Return digests of what this process trains with: base, tokenizer, each dataset."""
    data = prepared.data
    datasets = dict(data.digests) if isinstance(data, PreparedData) else {}
    return {**datasets, **digests_of({"data in all": inputs.data, "base": inputs.base})}


def save_result(
    run_dir: RunDir, model: PreTrainedModel | PeftModel, prepared: Prepared, batches: TrainingData
) -> RunReport:
    """Write what was trained and the report of the run."""
    if isinstance(batches.train, StreamedBatches):
        write_json(run_dir.data_file, [*batches.train.read_at_end(), *counted_ahead(prepared)])
    save_final(
        model,
        prepared.tokenizer,
        run_dir.root,
        plan=prepared.plan,
        chat_template=prepared.data.chat_template,
    )
    return report_run(run_dir, prepared.plan)


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
    run_dir = RunDir(Path(config.output.output_dir))
    require_mergeable(run_dir, base_source=config.model.base_model, overwrite=overwrite)
    prepared = prepare(config)
    plan, data, adapter = prepared.plan, prepared.data, prepared.plan.adapter
    if adapter is None:
        raise ExportError("this configuration trains the whole model: there is nothing to merge")
    quantization = plan.model.quantization
    load = partial(load_trained, plan.model, adapter, run_dir.root, prepared.tokenizer)
    merged = merge_adapter(
        load,
        prepared.tokenizer_with_template,
        run_dir,
        data.evaluation or data.train,
        source="held-out rows" if data.evaluation else "training rows (none are held out)",
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
        quantize=quantize,
    )
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


def describe(run_dir: RunDir, config: RunConfig, prepared: Prepared) -> None:
    """Write what is known before the first step: configuration, plan, environment, data counts."""
    run_dir.root.mkdir(parents=True, exist_ok=True)
    write_yaml(run_dir.config_file, config.dump())
    write_json(run_dir.plan_file, plan_as_dict(prepared.plan))
    write_json(run_dir.environment_file, read_environment(prepared.plan.model.device))
    write_json(run_dir.data_file, counted_ahead(prepared))
    for text in prepared.plan.notices:
        notice(text)


def on_device(batch: Batch, device: str) -> Batch:
    """Return the batch with its tensors on the device."""
    moved = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    return cast("Batch", moved)
