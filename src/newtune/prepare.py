"""From a configuration to what is known before weights load: plan, data, tokenizer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from newtune.config.run import RunConfig
from newtune.data.batches import EvalBatches, TrainBatches
from newtune.data.prepare import PreparedData, prepare_data
from newtune.data.stream.prepare import StreamedData, prepare_stream
from newtune.distributed.group import ALONE, Group
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.model.adapters import read_adapter
from newtune.model.facts import read_model_facts, read_skeleton
from newtune.model.tokenizer import load_tokenizer, new_token_ids
from newtune.outputs.save import with_template
from newtune.plan.facts import ModelFacts
from newtune.plan.parts import Plan
from newtune.plan.plan import ModelSide, make_plan, plan_model_side
from newtune.training.feed import TrainingData
from newtune.training.optim import check_optimizer
from newtune.training.schedules import check_schedule
from newtune.training.trackers import check_trackers


@dataclass(frozen=True)
class Prepared:
    """What is known before weights load."""

    plan: Plan
    data: PreparedData | StreamedData
    tokenizer: PreTrainedTokenizerBase
    new_token_ids: Sequence[int]
    """Tokens that the configuration adds to the tokenizer."""
    world: World
    """This process among those that train."""

    @cached_property
    def tokenizer_with_template(self) -> PreTrainedTokenizerBase:
        """The tokenizer with the chat template of the training."""
        return with_template(self.tokenizer, self.data.chat_template)


def prepare(config: RunConfig, world: World | None = None, *, trains: bool = False) -> Prepared:
    """Tokenise the data and make the plan; no weights are loaded, errors come early.

    By default for one process, and to evaluate, not to train. Several prepare the data once: one
    of them, while the others wait for its lock.
    """
    world = world or World.alone()
    side = model_side(config, world, trains=trains)
    check_optimizer(config.training.optimizer)
    tokenizer = load_tokenizer(config.tokenizer, config.model)
    if side.family == "mistral":
        tokenizer.padding_side = "left"
    data = (
        prepare_stream(config, tokenizer) if config.is_streamed else prepare_data(config, tokenizer)
    )
    new_ids = new_token_ids(config.tokenizer, config.model, tokenizer)
    plan = make_plan(config, world, side, data.facts, new_tokens=len(new_ids))
    check_schedule(plan.training.schedule)
    check_trackers(plan.training.trackers)
    return Prepared(plan, data, tokenizer, new_ids, world)


def model_side(config: RunConfig, world: World, *, trains: bool = False) -> ModelSide:
    """Plan model and adapter from what their configurations alone tell."""
    keys = config.adapter
    stored = read_adapter(keys.lora_model_dir) if keys.adapter and keys.lora_model_dir else None
    return plan_model_side(
        config,
        world,
        model_facts(config),
        stored_adapter=stored,
        skeleton=partial(read_skeleton, config.model.base_model, **_model_keys(config)),
        trains=trains,
    )


def model_facts(config: RunConfig) -> ModelFacts:
    """Read what the checkpoint's config alone tells."""
    return read_model_facts(config.model.base_model, **_model_keys(config))


def _model_keys(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "config_source": model.base_model_config,
        "revision": model.revision_of_model,
        "trust_remote_code": bool(model.trust_remote_code),
        "model_class": model.model_type or "AutoModelForCausalLM",
        "config_overrides": model.overrides_of_model_config or {},
    }


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


def counted_ahead(prepared: Prepared) -> list[dict[str, Any]]:
    """Return what is counted before the run: every dataset that is not streamed."""
    return [asdict(count) for count in prepared.data.counts]


def training_data(prepared: Prepared, group: Group = ALONE) -> TrainingData:
    """Lay the prepared examples out as the batches of the whole run, for this process."""
    plan, data, rank = prepared.plan, prepared.data, group.data_rank
    flatten = plan.training.flatten
    held_out = None
    if data.evaluation is not None:
        rows = plan.training.evaluation.rows_per_device
        held_out = EvalBatches(data, rows, rank=rank, world_size=group.data_size, flatten=flatten)
    steps = plan.training.steps
    return TrainingData(
        train=data.batches(steps, rank=rank, flatten=flatten)
        if isinstance(data, StreamedData)
        else TrainBatches(data, steps, rank=rank, flatten=flatten),
        evaluation=held_out,
        eval_examples=data.evaluation or (),
    )
