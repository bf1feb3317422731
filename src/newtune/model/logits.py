"""What families do to their logits after the output head, which the loss takes over from them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

OFF = 2.0**80
"""A soft-cap that leaves every float32 below 1e20 as it is, bit for bit; some cannot be None."""

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Fields of a config that name a soft-cap."""


@dataclass(frozen=True)
class Factor:
    """A number that logits are multiplied by, or divided."""

    owner: Callable[[PreTrainedModel], Any]
    """Whose attribute of the field's name the forward reads."""
    divides: bool = False
    multiplied_by: frozenset[str] = frozenset()
    """Families that multiply nevertheless."""

    def scale(self, value: float, family: str) -> float:
        """Return what logits are multiplied by in effect."""
        return 1 / value if self.divides and family not in self.multiplied_by else value


def _config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()


FACTORS: Mapping[str, Factor] = {
    "logits_scaling": Factor(_config, divides=True, multiplied_by=frozenset({"hyperclovax"})),
    "logit_scale": Factor(lambda model: model),  # the Cohere families
    "lm_head_multiplier": Factor(lambda model: model.base_model),  # Falcon-H1
}
"""Field of a config → what it does."""


@contextmanager
def absorbed(model: PreTrainedModel) -> Iterator[tuple[float | None, float]]:
    """Yield (soft-cap, scale) of the model's logits, its own being switched off meanwhile."""
    settings: Mapping[str, Any] = _config(model).to_dict()
    softcap, scale = None, 1.0
    with ExitStack() as stack:
        for name in SOFTCAPS:
            if settings.get(name) is not None:
                softcap = settings[name]
                stack.enter_context(_set(_config(model), name, OFF))
        for name, factor in FACTORS.items():
            if settings.get(name) is not None:
                scale *= factor.scale(settings[name], str(settings["model_type"]))
                stack.enter_context(_set(factor.owner(model), name, 1.0))
        yield softcap, scale


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
