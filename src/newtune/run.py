"""A run from configuration to result: `train_together` is the whole of it on one page.

`prepare.py` is the part before weights load, `results.py` what follows a run.
"""

from contextlib import closing, nullcontext
from dataclasses import replace
from logging import WARNING
from pathlib import Path
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from newtune.config.run import RunConfig
from newtune.data.batches import TrainBatches
from newtune.data.prepare import PreparedData
from newtune.data.stream.batches import StreamedBatches
from newtune.distributed.agreement import code_digests, digests_of, require_agreement
from newtune.distributed.group import Group
from newtune.distributed.meeting import Meeting
from newtune.distributed.watch import Watch
from newtune.distributed.world import World, restarts
from newtune.logs import logger, notice
from newtune.model.eva import start_from_data
from newtune.model.load import fetch_weights, load_model
from newtune.model.relora import join_rounds
from newtune.outputs.conversation import answer_ends
from newtune.outputs.dataset_upload import upload_data
from newtune.outputs.inputs import Inputs, keep_inputs, require_same_inputs
from newtune.outputs.report import RunReport, report_run, report_uploads
from newtune.outputs.save import save_final
from newtune.outputs.uploads import Uploads, open_uploads
from newtune.plan.mesh import require_processes
from newtune.plan.parallel import hang_timeout_of
from newtune.plan.plan import plan_as_dict
from newtune.prepare import (
    Prepared,
    counted_ahead,
    prepare,
    refuse_unread_keys,
    training_data,
)
from newtune.run_dir import RunDir, read_environment, write_json, write_yaml
from newtune.training.build import build_trainer
from newtune.training.checkpoint import require_same_rows
from newtune.training.feed import TrainingData

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
        run_dir = RunDir(Path(config.output.output_dir))
        with run_dir.claimed() if world.is_main else nullcontext():
            return train_together(config, world, run_dir, meeting, watch)


def train_together(
    config: RunConfig, world: World, run_dir: RunDir, meeting: Meeting, watch: Watch
) -> RunReport | None:
    """Train with the processes that have met, or alone."""
    group = Group.of(world, watch)
    if not world.is_main:
        logger.setLevel(WARNING)  # what the first process says need not be said again
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


def describe(run_dir: RunDir, config: RunConfig, prepared: Prepared) -> None:
    """Write what is known before the first step: configuration, plan, environment, data counts."""
    run_dir.root.mkdir(parents=True, exist_ok=True)
    write_yaml(run_dir.config_file, config.dump())
    write_json(run_dir.plan_file, plan_as_dict(prepared.plan))
    write_json(run_dir.environment_file, read_environment(prepared.plan.model.device))
    write_json(run_dir.data_file, counted_ahead(prepared))
    for text in prepared.plan.notices:
        notice(text)
