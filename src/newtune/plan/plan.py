"""RunConfig + facts + World → Plan: every derived number with its reason.

This is the only place where training, model and output keys are read, so that a key which nothing
here reads is found before weights load.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from newtune.config.adapter import PeftSection
from newtune.config.quantization import BNB_DEFAULTS
from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.adapters import count_trainable, read_directly, resolve_targets
from newtune.plan.attention import Setting, choose_attention
from newtune.plan.family import family_of
from newtune.plan.isolation import refuse_leaking
from newtune.plan.ledger import Ledger
from newtune.plan.parallel import plan_parallel
from newtune.plan.parts import (
    AdapterPlan,
    DataFacts,
    HubPlan,
    ModelFacts,
    ModelPlan,
    OutputPlan,
    Plan,
    StepPlan,
)
from newtune.plan.placed import place
from newtune.plan.precision import resolve_precision
from newtune.plan.processes import processes_of
from newtune.plan.quantization import plan_quantization, require_trainable
from newtune.plan.sequences import shares_sequences
from newtune.plan.trackers import plan_trackers
from newtune.plan.training import plan_training
from newtune.plan.zero import Known, asks_for_bf16, plan_zero, read_zero, zero_precision


@dataclass(frozen=True)
class ModelSide:
    """The part of a plan that needs no data: made first, so that its errors come first."""

    model: ModelPlan
    adapter: AdapterPlan | None
    facts: ModelFacts
    ledger: Ledger
    family: str | None
    """Whose conventions the tokenizer follows because a flag says so; None = its own."""


def plan_model_side(
    config: RunConfig,
    world: World,
    facts: ModelFacts,
    *,
    stored_adapter: AdapterPlan | None = None,
    skeleton: Callable[[], PreTrainedModel] | None = None,
    trains: bool = False,
) -> ModelSide:
    """Return how model and adapter are loaded.

    `stored_adapter`: what the adapter of `lora_model_dir` is, which then is the run's. `skeleton`
    builds the model without weights, to be spread over devices; `trains`: it will be trained so.

    Raises:
        ConfigError: sequence_len beyond the model's positions; a device that cannot do the
            precision; an adapter that matches no module.
        SetupError: an attention implementation whose package or device is missing.
    """
    ledger = Ledger()
    _require_positions(config, facts)
    family = _family(config, facts, ledger)
    model = _plan_model(config, world, facts, ledger)
    if skeleton is not None:
        model = place(model, config, world, facts, ledger, skeleton, trains=trains)
    if world.visible_gpus > 1 and world.size == 1 and model.placement is None:
        count, why = processes_of(config, world.visible_gpus)
        ledger.notice(
            f"{world.visible_gpus} GPUs are visible; this is the plan of one process, "
            f"{world.device}. `newtune train` starts {count} by itself: {why}."
        )
    adapter = _plan_adapter(config, facts, ledger, stored_adapter)
    require_trainable(model.quantization, adapter)
    return ModelSide(model, adapter, facts, ledger, family)


def make_plan(
    config: RunConfig, world: World, side: ModelSide, data: DataFacts, *, new_tokens: int = 0
) -> Plan:
    """Return the whole plan; `new_tokens` is how many tokens the configuration adds.

    Raises:
        ConfigError: batch sizes that do not divide, an empty run.
    """
    ledger = side.ledger
    training = plan_training(
        config,
        world,
        data,
        attention=side.model.attention,
        trackers=plan_trackers(config.tracking, ledger),
        parallel=plan_parallel(
            config,
            world,
            ledger,
            facts=side.facts,
            adapter=side.adapter,
            quantization=side.model.quantization,
        ),
        ledger=ledger,
    )
    zero = read_zero(config)
    if zero is not None:
        known = Known(
            steps=training.steps,
            optimizer=training.optimizer,
            schedule=training.schedule,
            precision=side.model.precision,
            facts=side.facts,
            quantization=side.model.quantization,
        )
        parallel = plan_zero(config, zero, known, world, ledger)
        training = replace(training, parallel=parallel)
    if training.relora is not None and new_tokens:
        message = f"excludes training the rows of {new_tokens} added tokens, which start but once"
        hint = "Use tokens that the tokenizer has, or leave ReLoRA out."
        raise ConfigError([Problem("relora_steps", message, hint)])
    steps = training.steps
    tokens_per_step = ledger.decide("tokens_per_step", *_tokens_per_step(data, steps))
    trainable = count_trainable(
        side.facts, side.adapter, side.model.unfrozen_parameters, new_tokens
    )
    ledger.decide(
        "trainable_parameters",
        trainable,
        f"{trainable / side.facts.parameters:.2%} of {side.facts.parameters:,}",
    )
    return Plan(
        model=side.model,
        adapter=side.adapter,
        training=training,
        output=_plan_output(config, ledger),
        model_facts=side.facts,
        data_facts=data,
        trainable_parameters=trainable,
        tokens_per_step=tokens_per_step,
        notices=ledger.notices,
        reasons=dict(ledger.reasons),
    )


def _tokens_per_step(data: DataFacts, steps: StepPlan) -> tuple[float, str]:
    """Return the tokens of a step on average, and why."""
    if data.sequence_tokens is not None:
        sequence = data.sequence_tokens
        why = f"about {sequence:g} tokens in a sequence, by the stream's first rows"
        return sequence * steps.rows_per_step, f"{why}, × {steps.rows_per_step} per step"
    sequences = data.packs_in_epoch(0)
    return (
        data.tokens / max(1, sequences) * steps.rows_per_step,
        f"{data.tokens} tokens in {sequences} sequences × {steps.rows_per_step} per step",
    )


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values for plan.json, the reasons beside them."""
    values = asdict(plan)
    values["data_facts"].pop("packs_in_epoch")
    if plan.data_facts.streamed:  # unknown, not none
        unknown = dict.fromkeys(("train_examples", "tokens", "trained_tokens"))
        values["data_facts"] |= unknown
    values["model_facts"].pop("parameter_shapes")
    values["model_facts"].pop("linear_modules")
    values["training"]["steps"]["total_steps"] = plan.training.steps.total_steps
    values["training"]["steps"]["rows_per_step"] = plan.training.steps.rows_per_step
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _family(config: RunConfig, facts: ModelFacts, ledger: Ledger) -> str | None:
    keys = config.model
    flags = {
        "llama": keys.is_llama_derived_model,
        "mistral": keys.is_mistral_derived_model,
        "qwen": keys.is_qwen_derived_model,
        "falcon": keys.is_falcon_derived_model,
    }
    family, text = family_of(flags, facts.model_type)
    if text:
        ledger.notice(text)
    return family


def _require_positions(config: RunConfig, facts: ModelFacts) -> None:
    sequence = config.sequence
    length, key = sequence.sequence_len, "sequence_len"
    if sequence.eval_sequence_len and sequence.eval_sequence_len > length:
        length, key = sequence.eval_sequence_len, "eval_sequence_len"
    if facts.max_positions is None or length <= facts.max_positions:
        return
    raise ConfigError(
        [
            Problem(
                key,
                f"is {length}, but the model's positions end at {facts.max_positions}.",
                "Lower it, or stretch the positions with "
                "`overrides_of_model_config: {rope_scaling: {rope_type: linear, factor: "
                f"{-(-length // facts.max_positions)}}}}}`.",
            )
        ]
    )


def _plan_model(config: RunConfig, world: World, facts: ModelFacts, ledger: Ledger) -> ModelPlan:
    model, compute = config.model, config.compute
    zero = read_zero(config)
    precision, why = resolve_precision(
        bf16=True if asks_for_bf16(zero) and compute.bf16 is not False else compute.bf16,
        fp16=compute.fp16,
        bfloat16=compute.bfloat16,
        float16=compute.float16,
        float32=compute.float32,
        tf32=compute.tf32,
        device=world.device,
        bf16_is_fast=world.bf16_is_fast,
    )
    if zero is not None:
        precision, why = zero_precision(precision) or (precision, why)
    ledger.decide("model.precision", precision, why)
    if compute.tf32 is True and world.device == "cpu":
        ledger.notice("`tf32` has no effect in this run: it is for NVIDIA GPUs.")
    quantization, why = plan_quantization(
        facts,
        precision,
        adapter=config.adapter.adapter,
        four_bit=config.quantization.load_in_4bit,
        eight_bit=config.quantization.load_in_8bit,
        gptq=config.quantization.gptq,
        options={**BNB_DEFAULTS, **(config.quantization.bnb_config_kwargs or {})},
    )
    ledger.decide("model.quantization", quantization, why)
    packed = shares_sequences(config) or bool(config.sequence.batch_flattening)
    attention, why = choose_attention(
        compute.attn_implementation,
        facts,
        Setting(
            world.device,
            packed=packed,
            half_precision=(precision.autocast or precision.frozen_weights) != "float32",
            capability=world.capability,
        ),
    )
    ledger.decide("model.attention", attention, why)
    if packed:
        refuse_leaking(facts, attention)
    return ModelPlan(
        source=model.base_model,
        config_source=model.base_model_config or model.base_model,
        revision=model.revision_of_model,
        model_class=model.model_type or "AutoModelForCausalLM",
        trust_remote_code=bool(model.trust_remote_code),
        ignore_patterns=_as_tuple(model.base_model_ignore_patterns),
        config_overrides=model.overrides_of_model_config or {},
        load_kwargs=model.overrides_of_model_kwargs or {},
        attention=attention,
        precision=precision,
        device=ledger.decide("model.device", world.device, "the first device of this process"),
        gradient_checkpointing=bool(compute.gradient_checkpointing) or recomputes(config),
        gradient_checkpointing_kwargs=compute.gradient_checkpointing_kwargs or {},
        embedding_multiple=32 if config.tokenizer.resize_token_embeddings_to_32x else None,
        unfrozen_parameters=_as_tuple(model.unfrozen_parameters),
        quantization=quantization,
        packed=packed,
    )


def _plan_adapter(
    config: RunConfig, facts: ModelFacts, ledger: Ledger, stored: AdapterPlan | None
) -> AdapterPlan | None:
    keys = config.adapter
    if not keys.adapter:
        return ledger.decide("adapter", None, "no adapter given: full fine-tuning")
    on_cpu = bool(config.placement.lora_on_cpu)
    if stored is not None:
        stored = replace(stored, read_on_cpu=on_cpu)
        return ledger.decide("adapter", stored, f"the one of lora_model_dir {keys.lora_model_dir}")
    targets = resolve_targets(
        facts,
        modules=keys.lora_target_modules,
        all_linear=bool(keys.lora_target_linear),
        parameters=_as_tuple(keys.lora_target_parameters),
    )
    if keys.lora_target_linear:
        ledger.decide(
            "adapter.target_modules",
            targets,
            "lora_target_linear: every linear layer but the output head",
        )
        _say_what_is_left_out(facts, ledger)
    return AdapterPlan(
        kind="lora",
        rank=keys.lora_r,
        alpha=keys.lora_alpha,
        dropout=keys.lora_dropout,
        target_modules=targets,
        layers=_as_layers(keys.peft_layers_to_transform),
        modules_to_save=_as_tuple(keys.lora_modules_to_save),
        fan_in_fan_out=bool(keys.lora_fan_in_fan_out),
        use_rslora=bool(keys.peft_use_rslora),
        use_dora=bool(keys.peft_use_dora),
        init=True if keys.peft_init_lora_weights is None else keys.peft_init_lora_weights,
        continue_from=None,
        target_parameters=_as_tuple(keys.lora_target_parameters),
        further_arguments=_given(
            layers_pattern=keys.peft_layers_pattern,
            trainable_token_indices=keys.peft_trainable_token_indices,
            ensure_weight_tying=keys.peft_ensure_weight_tying,
        ),
        read_on_cpu=on_cpu,
        repairs_quantization=_asks_for_loftq(keys.peft),
    )


def _say_what_is_left_out(facts: ModelFacts, ledger: Ledger) -> None:
    left_out = sorted({name.rpartition(".")[2] for name in read_directly(facts)})
    if left_out:
        ledger.notice(
            f"lora_target_linear leaves out {', '.join(left_out)}: a state-space kernel reads "
            "their weights without calling them, so that a LoRA would have no effect"
        )


def _asks_for_loftq(keys: PeftSection | None) -> bool:
    loftq = keys.loftq_config if keys else None
    # One iteration is what there is; `loftq_needs_a_quantised_base` refuses others.
    return loftq is not None and bool(loftq.loftq_bits) and (loftq.loftq_iter or 1) == 1


def _given(**values: Any) -> Mapping[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


UPLOADS: Mapping[str, str] = {
    "end": "the result, once trained",
    "every_save": "the model with every checkpoint, and the result",
    "checkpoint": "as every_save, and the latest checkpoint whole, in last-checkpoint/",
    "all_checkpoints": "as every_save, and every checkpoint whole",
}
"""`hub_strategy` → what is uploaded."""


def _plan_output(config: RunConfig, ledger: Ledger) -> OutputPlan:
    output = config.output
    folder = ledger.decide("output.folder", Path(output.output_dir), "output_dir")
    hub = None
    if output.hub_model_id:
        strategy = output.hub_strategy or "end"
        hub = HubPlan(
            output.hub_model_id,
            private=bool(output.hub_private_repo),
            revision=output.hub_revision,
            strategy=strategy,
            always_push=bool(output.hub_always_push),
        )
        ledger.decide("output.hub", hub, f"hub_strategy {strategy}: {UPLOADS[strategy]}")
    why = "push_dataset_to_hub; private unless `hub_private_repo: false`"
    return OutputPlan(
        folder=folder,
        merged_dtype=output.merged_dtype,
        hub=hub,
        dataset_hub=ledger.decide("output.dataset_hub", plan_dataset_hub(config), why),
    )


def plan_dataset_hub(config: RunConfig) -> HubPlan | None:
    """Return where prepared data is uploaded, if anywhere."""
    id = config.data.push_dataset_to_hub
    return HubPlan(id, private=config.output.hub_private_repo is not False) if id else None


def _as_tuple(value: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _as_layers(value: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, int) else tuple(value)


def recomputes(config: RunConfig) -> bool:
    """Tell whether FSDP's own option asks for activations to be computed anew."""
    fsdp = config.parallel.fsdp_config
    return fsdp is not None and bool(fsdp.activation_checkpointing)
