"""Tensor parallel: which layers are split over processes, and what cannot be."""

from collections.abc import Iterator, Mapping

from newtune.config.run import RunConfig
from newtune.errors import ConfigError, Problem
from newtune.plan.facts import ModelFacts
from newtune.plan.parts import AdapterPlan, QuantizationPlan
from newtune.plan.sharing import FsdpPlan, MeshPlan

KEY = "tensor_parallel_size"
STYLES = frozenset(
    {
        "colwise",
        "colwise_gather_output",
        "rowwise",
        "rowwise_split_input",
        "replicated_with_grad_allreduce",
    }
)
"""Ways of splitting that newtune knows (`training/tensor.py`); those of experts are others."""

LEFT_WHOLE = frozenset({"embedding_rowwise"})
"""Embeddings, as the output head, are whole on every process: the fused loss needs its weight."""


def plan_tensor(
    config: RunConfig,
    mesh: MeshPlan,
    *,
    facts: ModelFacts,
    adapter: AdapterPlan | None,
    quantization: QuantizationPlan | None,
    fsdp: FsdpPlan | None,
) -> Mapping[str, str]:
    """Return pattern of names → how a layer is split, over the mesh's axis for that.

    Raises:
        ConfigError: what cannot be split, each with the reason.
    """
    styles = {
        name: style
        for name, style in facts.tensor_plan.items()
        if name != facts.head_name and style not in LEFT_WHOLE
    }
    problems = [
        *_of_model(facts, styles, mesh.tensor),
        *_of_adapter(adapter, styles),
        *_of_quantization(quantization),
        *(_of_copies(mesh) if fsdp is None else _of_sharding(fsdp, adapter, styles)),
    ]
    if problems:
        raise ConfigError(problems)
    return styles


def _of_model(facts: ModelFacts, styles: Mapping[str, str], size: int) -> Iterator[Problem]:
    if not styles:
        message = f"transformers has no plan of how to split the layers of `{facts.model_type}`"
        yield Problem(KEY, message, "Use `fsdp_config` or `dp_shard_size` for this model.")
    unknown = sorted(set(styles.values()) - STYLES)
    if unknown:
        message = f"`{facts.model_type}` splits layers by {', '.join(unknown)}: newtune cannot"
        yield Problem(KEY, message, "Models without experts work; or use `dp_shard_size`.")
    counts = {"attention heads": facts.heads, "key heads": facts.key_heads}
    for what, count in counts.items():
        if count is not None and count % size:
            message = f"is {size}, but the model's {count} {what} cannot be dealt out evenly"
            yield Problem(KEY, message, f"Use a divisor of {count}.")


def _of_adapter(adapter: AdapterPlan | None, styles: Mapping[str, str]) -> Iterator[Problem]:
    if adapter is None:
        return
    if adapter.use_dora:
        yield Problem("peft_use_dora", f"`{KEY}` splits the rows whose norms DoRA needs whole")
    if adapter.target_parameters:
        yield Problem("lora_target_parameters", f"`{KEY}` splits layers, not single parameters")
    split = {name.rsplit(".", 1)[-1] for name in styles}
    for name in adapter.modules_to_save:
        if name in split:
            message = f"`{KEY}` splits `{name}`, of which PEFT would train a whole copy"
            yield Problem("lora_modules_to_save", message, "Name it in `lora_target_modules`.")


def _of_quantization(quantization: QuantizationPlan | None) -> Iterator[Problem]:
    if quantization is not None:
        message = "cannot split a quantised base: packed blocks do not end where columns do"
        yield Problem(KEY, message, "Use `dp_shard_size` or `fsdp_config` with `adapter: qlora`.")


def _of_copies(mesh: MeshPlan) -> Iterator[Problem]:
    if mesh.replicas > 1:
        message = f"{mesh.replicas} copies of a model whose layers are split need sharding, too"
        hint = "Use `dp_shard_size` instead, or besides."
        yield Problem("dp_replicate_size", message, hint)


def _of_sharding(
    fsdp: FsdpPlan, adapter: AdapterPlan | None, styles: Mapping[str, str]
) -> Iterator[Problem]:
    if fsdp.offload:
        message = f"parameters that `{KEY}` splits are not offloaded"
        yield Problem("fsdp_config.offload_params", message, "Leave one of the two out.")
    if adapter is None and "replicated_with_grad_allreduce" in styles.values():
        message = "the norms of this model's heads would get a part of their gradient only"
        hint = "Train an adapter, or leave the sharding out."
        yield Problem(KEY, f"with sharding, {message}", hint)
