"""The adapter of a run: from its keys, or the one that it goes on with."""

from dataclasses import replace

from newtune.config.adapter import PeftSection
from newtune.config.run import RunConfig
from newtune.plan.adapter_fit import require_fitting
from newtune.plan.facts import ModelFacts
from newtune.plan.given import as_layers, as_tuple, given
from newtune.plan.ledger import Ledger
from newtune.plan.parts import AdapterPlan
from newtune.plan.targets import expert_parameters, read_directly, resolve_targets


def plan_adapter(
    config: RunConfig, facts: ModelFacts, ledger: Ledger, stored: AdapterPlan | None
) -> AdapterPlan | None:
    """Return what is put over the base, if anything; `stored` is the adapter that goes on.

    Raises:
        ModelError: a target matches nothing.
        ConfigError: layers, modules or parameters that are not there.
    """
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
        parameters=as_tuple(keys.lora_target_parameters),
    )
    if keys.lora_target_linear:
        ledger.decide(
            "adapter.target_modules",
            targets,
            f"lora_target_linear: every linear layer but the output head{_or_routers(facts)}",
        )
        _say_what_is_left_out(facts, ledger, named=bool(keys.lora_target_parameters))
    adapter = AdapterPlan(
        kind="lora",
        rank=keys.lora_r,
        alpha=keys.lora_alpha,
        dropout=keys.lora_dropout,
        target_modules=targets,
        layers=as_layers(keys.peft_layers_to_transform),
        modules_to_save=as_tuple(keys.lora_modules_to_save),
        fan_in_fan_out=bool(keys.lora_fan_in_fan_out),
        use_rslora=bool(keys.peft_use_rslora),
        use_dora=bool(keys.peft_use_dora),
        init=True if keys.peft_init_lora_weights is None else keys.peft_init_lora_weights,
        continue_from=None,
        target_parameters=as_tuple(keys.lora_target_parameters),
        further_arguments=given(
            layers_pattern=keys.peft_layers_pattern,
            trainable_token_indices=keys.peft_trainable_token_indices,
            ensure_weight_tying=keys.peft_ensure_weight_tying,
        ),
        read_on_cpu=on_cpu,
        repairs_quantization=_asks_for_loftq(keys.peft),
    )
    require_fitting(facts, adapter)
    return adapter


def _say_what_is_left_out(facts: ModelFacts, ledger: Ledger, *, named: bool) -> None:
    left_out = sorted({name.rpartition(".")[2] for name in read_directly(facts)})
    if left_out:
        ledger.notice(
            f"lora_target_linear leaves out {', '.join(left_out)}: a state-space kernel reads "
            "their weights without calling them, so that a LoRA would have no effect"
        )
    routers = sorted({name.rpartition(".")[2] for name in facts.routers})
    if routers:
        ledger.notice(
            f"lora_target_linear leaves out what chooses the experts ({', '.join(routers)}): few "
            "changes of it would send tokens to experts that never saw such"
        )
    taken = sorted({name.rpartition(".")[2] for name in facts.taken_for_experts})
    if taken:
        ledger.notice(
            f"lora_target_linear leaves out {', '.join(taken)} of dense layers and shared experts: "
            f"PEFT takes these names for the experts of a {facts.model_type} model"
        )
    experts = expert_parameters(facts)
    if experts and not named:
        ledger.notice(
            f"lora_target_linear leaves out the experts, which are parameters and no layers: "
            f"`lora_target_parameters: [{', '.join(experts)}]` adapts them, with `lora_dropout: 0`"
        )


def _or_routers(facts: ModelFacts) -> str:
    return " and the routers of experts" if facts.routers else ""


def _asks_for_loftq(keys: PeftSection | None) -> bool:
    loftq = keys.loftq_config if keys else None
    # One iteration is what there is; `loftq_needs_a_quantised_base` refuses others.
    return loftq is not None and bool(loftq.loftq_bits) and (loftq.loftq_iter or 1) == 1
