"""The names that `optimizer` and `lr_scheduler` take, and which are refused, with the reason.

They stand here, and not where they act, so that a configuration is checked in a blink.
"""

from collections.abc import Mapping

OPTIMIZERS = (
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_8bit", "adamw_torch_4bit"),
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("adafactor", "muon", "sgd", "adagrad", "rmsprop"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    *("schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"),
    *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw"),
    *("stable_adamw", "optimi_adamw", "adopt_adamw", "came_pytorch", "grokadamw"),
    *("ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8", "dion"),
    *("lomo", "adalomo", "adamw_anyprecision", "adamw_torch_xla", "adamw_torch_npu_fused"),
    *("galore_adamw_layerwise", "galore_adamw_8bit_layerwise"),
    *("galore_adafactor_layerwise", "apollo_adamw_layerwise"),
)
"""The names of `optimizer` in the field."""

SCHEDULES = (
    *("cosine", "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr"),
    *("linear", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
    *("warmup_stable_decay", "one_cycle", "rex", "reduce_lr_on_plateau", "greedy"),
)
"""The names of `lr_scheduler` in the field."""

_IN_BACKWARD = (
    "it updates the weights during the backward pass, so that accumulation, clipping and exact "
    "resuming are impossible"
)
REFUSED_OPTIMIZERS: Mapping[str, str] = {
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "adopt_adamw": "there is no package of it; `adamw_torch` is the nearest",
    "dion": "its package is not supported yet; `muon` orthogonalises its updates too",
    "adamw_torch_xla": "it runs on TPUs only",
    "adamw_torch_npu_fused": "it runs on Ascend NPUs only",
    "adamw_anyprecision": "its package torchdistx is no longer maintained; use `stable_adamw` or "
    "`adamw_torch` with float32 masters (`bf16: true`)",
}
"""Name → why it cannot be used."""

REFUSED_SCHEDULES: Mapping[str, str] = dict.fromkeys(
    ("reduce_lr_on_plateau", "greedy"),
    "it follows the evaluation, not the step, so that a resumed run would differ; "
    "use cosine or linear with `early_stopping_patience`",
)
"""Name → why it cannot be used."""

SCHEDULES_WITHOUT_FLOOR = frozenset({"constant", "constant_with_warmup", "inverse_sqrt"})
"""They take no `cosine_min_lr_ratio`."""
