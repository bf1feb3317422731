"""How the base model is loaded: precision, quantisation, attention."""

from newtune.config.quantization import BNB_DEFAULTS
from newtune.config.run import RunConfig
from newtune.distributed.world import World
from newtune.errors import ConfigError, Problem
from newtune.plan.attention import Setting, choose_attention
from newtune.plan.facts import ModelFacts
from newtune.plan.family import family_of
from newtune.plan.given import as_tuple
from newtune.plan.isolation import refuse_leaking
from newtune.plan.ledger import Ledger
from newtune.plan.parts import ModelPlan, PrecisionPlan
from newtune.plan.precision import resolve_precision
from newtune.plan.quantization import plan_quantization, unpacked_at_loading
from newtune.plan.sequences import shares_sequences
from newtune.plan.unfrozen import plan_unfrozen
from newtune.plan.zero import asks_for_bf16, read_zero, zero_precision

SCALED_BY_LISTS = frozenset({"phi3"})
"""Families whose code takes `longrope` alone: a list of factors that belongs to a checkpoint."""


def plan_model(config: RunConfig, world: World, facts: ModelFacts, ledger: Ledger) -> ModelPlan:
    """Return how the base is loaded, on one device.

    Raises:
        ConfigError: a device that cannot do the precision, packing that the family cannot isolate.
        SetupError: an attention implementation whose package or device is missing.
    """
    model, compute = config.model, config.compute
    precision = _plan_precision(config, world, ledger)
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
    unpacked = unpacked_at_loading(facts, precision, adapter=config.adapter.adapter)
    if unpacked is not None:
        ledger.notice(unpacked)
    packed = shares_sequences(config) or bool(config.sequence.batch_flattening)
    attention = _plan_attention(config, world, facts, ledger, precision, packed=packed)
    return ModelPlan(
        source=model.base_model,
        config_source=model.base_model_config or model.base_model,
        revision=model.revision_of_model,
        model_class=model.model_type or "AutoModelForCausalLM",
        trust_remote_code=bool(model.trust_remote_code),
        ignore_patterns=as_tuple(model.base_model_ignore_patterns),
        config_overrides=model.overrides_of_model_config or {},
        load_kwargs=model.overrides_of_model_kwargs or {},
        attention=attention,
        precision=precision,
        device=ledger.decide("model.device", world.device, "the first device of this process"),
        gradient_checkpointing=bool(compute.gradient_checkpointing) or recomputes(config),
        gradient_checkpointing_kwargs=compute.gradient_checkpointing_kwargs or {},
        embedding_multiple=32 if config.tokenizer.resize_token_embeddings_to_32x else None,
        unfrozen_parameters=plan_unfrozen(model.unfrozen_parameters or (), facts, ledger),
        quantization=quantization,
        unpacks=unpacked is not None,
        packed=packed,
    )


def _plan_precision(config: RunConfig, world: World, ledger: Ledger) -> PrecisionPlan:
    compute, zero = config.compute, read_zero(config)
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
    if compute.tf32 is True and world.device == "cpu":
        ledger.notice("`tf32` has no effect in this run: it is for NVIDIA GPUs.")
    return ledger.decide("model.precision", precision, why)


def _plan_attention(
    config: RunConfig,
    world: World,
    facts: ModelFacts,
    ledger: Ledger,
    precision: PrecisionPlan,
    *,
    packed: bool,
) -> str:
    attention, why = choose_attention(
        config.compute.attn_implementation,
        facts,
        Setting(
            world.device,
            packed=packed,
            half_precision=(precision.autocast or precision.frozen_weights) != "float32",
            capability=world.capability,
        ),
    )
    if packed:
        refuse_leaking(facts, attention)
    return ledger.decide("model.attention", attention, why)


def plan_family(config: RunConfig, facts: ModelFacts, ledger: Ledger) -> str | None:
    """Return the family whose conventions a flag brings to the tokenizer, if any."""
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


def require_positions(config: RunConfig, facts: ModelFacts) -> None:
    """Refuse sequences that are longer than the model's positions."""
    sequence = config.sequence
    length, key = sequence.sequence_len, "sequence_len"
    if sequence.eval_sequence_len and sequence.eval_sequence_len > length:
        length, key = sequence.eval_sequence_len, "eval_sequence_len"
    if facts.max_positions is None or length <= facts.max_positions:
        return
    message = f"is {length}, but the model's positions end at {facts.max_positions}."
    hint = "Lower it."
    if facts.rotary_kinds == {"default"} and facts.model_type not in SCALED_BY_LISTS:
        hint = (
            "Lower it, or stretch the positions with `overrides_of_model_config: "
            f"{{rope_scaling: {{type: linear, factor: {-(-length // facts.max_positions)}}}}}`."
        )
    raise ConfigError([Problem(key, message, hint)])


def recomputes(config: RunConfig) -> bool:
    """Tell whether FSDP's own option asks for activations to be computed anew."""
    fsdp = config.parallel.fsdp_config
    return fsdp is not None and bool(fsdp.activation_checkpointing)
