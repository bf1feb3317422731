"""The whole run on one page: from configuration to report."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from newtune.config.run import RunConfig
from newtune.data.batches import EvalBatches, TrainBatches
from newtune.data.prepare import PreparedData, prepare_data
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.logs import notice
from newtune.model.generate import generate_greedy
from newtune.model.head import compute_loss_sum
from newtune.model.load import load_model, read_model_facts
from newtune.model.tokenizer import load_tokenizer
from newtune.outputs.report import RunReport, report_run
from newtune.outputs.save import save_final
from newtune.plan.parts import ModelFacts, Plan
from newtune.plan.plan import make_plan, plan_as_dict, plan_model_side
from newtune.run_dir import RunDir, read_environment, write_json, write_yaml
from newtune.training.optim import check_optimizer
from newtune.training.schedules import check_schedule
from newtune.training.trackers import check_trackers
from newtune.training.trainer import TrainingData, build_trainer


@dataclass(frozen=True)
class Prepared:
    """What is known before weights load."""

    plan: Plan
    data: PreparedData
    tokenizer: PreTrainedTokenizerBase


def train(config: RunConfig) -> RunReport:
    """Run a fine-tuning from configuration to report."""
    run_dir = RunDir(Path(config.output.output_dir))
    checkpoint = run_dir.checkpoint_to_resume(
        config.output.resume_from_checkpoint, automatic=config.output.auto_resume_from_checkpoints
    )
    if checkpoint is not None:
        run_dir.require_same_config(config.dump())
    prepared = prepare(config)
    plan, data, tokenizer = prepared.plan, prepared.data, prepared.tokenizer
    refuse_unread_keys(config)
    describe(run_dir, config, prepared)

    model = load_model(plan.model, plan.adapter, tokenizer=tokenizer)
    trainer = build_trainer(
        plan,
        model,
        tokenizer,
        training_data(prepared),
        run_dir,
        loss_sum=compute_loss_sum,
        generate=generate_greedy,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    save_final(
        model,
        tokenizer,
        run_dir.root,
        dtype=plan.model_facts.checkpoint_dtype,
        base_source=plan.model.source,
        base_revision=plan.model.revision,
        chat_template=data.chat_template,
    )
    return report_run(run_dir, plan)


def prepare(config: RunConfig) -> Prepared:
    """Tokenise the data and make the plan; no weights are loaded, errors come early."""
    world = World.current()
    side = plan_model_side(config, world, model_facts(config))
    check_optimizer(config.training.optimizer)
    tokenizer = load_tokenizer(config.tokenizer, config.model)
    data = prepare_data(config, tokenizer)
    plan = make_plan(config, world, side, data.facts)
    check_schedule(plan.training.schedule)
    check_trackers(plan.training.trackers)
    return Prepared(plan, data, tokenizer)


def model_facts(config: RunConfig) -> ModelFacts:
    """Read what the checkpoint's config alone tells."""
    model = config.model
    return read_model_facts(
        model.base_model,
        config_source=model.base_model_config,
        revision=model.revision_of_model,
        trust_remote_code=model.trust_remote_code,
        model_class=model.model_type or "AutoModelForCausalLM",
        config_overrides=model.overrides_of_model_config or {},
    )


def refuse_unread_keys(config: RunConfig) -> None:
    """Stop when a given key was read by nothing: it would have been ignored.

    Raises:
        ConfigError: naming each such key.
    """
    unread = config.unread_keys()
    if unread:
        raise ConfigError(
            [
                Problem(
                    key,
                    "is given, but nothing in this run reads it: it would have no effect.",
                    "Leave it out.",
                    file=str(config.source or ""),
                )
                for key in unread
            ]
        )


def describe(run_dir: RunDir, config: RunConfig, prepared: Prepared) -> None:
    """Write what is known before the first step: configuration, plan, environment, data counts."""
    run_dir.root.mkdir(parents=True, exist_ok=True)
    write_yaml(run_dir.config_file, config.dump())
    write_json(run_dir.plan_file, plan_as_dict(prepared.plan))
    write_json(run_dir.environment_file, read_environment(prepared.plan.model.device))
    write_json(run_dir.data_file, [count.as_dict() for count in prepared.data.counts])
    for text in prepared.plan.notices:
        notice(text)


def training_data(prepared: Prepared) -> TrainingData:
    """Lay the prepared examples out as the batches of the whole run."""
    plan, data = prepared.plan, prepared.data
    flatten = plan.training.flatten
    evaluation = plan.training.evaluation
    return TrainingData(
        train=TrainBatches(data, plan.training.steps, flatten=flatten),
        evaluation=data.evaluation
        and EvalBatches(data, evaluation.rows_per_device, flatten=flatten),
        eval_examples=data.evaluation or (),
    )
