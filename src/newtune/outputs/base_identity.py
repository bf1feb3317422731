"""Tell whether a base model is the one that an adapter was trained on."""

from collections.abc import Iterator
from dataclasses import dataclass

from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from newtune.model.adapters import MUTATING_INITS, UNTOUCHED_BASE
from newtune.model.fingerprint import fingerprint
from newtune.model.head import base_model
from newtune.model.placement import stored

TRAINED_PARTS = ("lora_", "modules_to_save", "trainable_tokens_")
WRAPPERS = frozenset({"base_layer", "original_module", "token_adapter"})
"""How PEFT names the adapter's own parameters, and what it puts into the names of the base's."""

PACKED_WEIGHTS = (".qweight", ".qzeros", "._weight_qdata")
"""Buffers that are weights: what GPTQ, AWQ and torchao pack."""


@dataclass(frozen=True)
class BaseIdentity:
    """Where a base came from, and a hash of its weights as the training saw them."""

    source: str
    revision: str | None
    dtype: str
    weights: str
    """sha256 over name, shape and first values of every tensor that the adapter does not train."""


def identify_base(model: PeftModel, *, source: str, revision: str | None) -> BaseIdentity:
    """Return the identity of the base below an adapter; the adapter itself has no part in it."""
    tensors = list(_base_tensors(model))
    dtypes = {str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors}
    if (untouched := dict(model.named_buffers()).get(UNTOUCHED_BASE)) is not None:
        tensors.append((UNTOUCHED_BASE, untouched))
    return BaseIdentity(source, revision, "+".join(sorted(dtypes)), fingerprint(tensors).hex())


def changes_base(model: PeftModel) -> bool:
    """Tell whether loading the adapter took a part out of the base's weights."""
    config = model.peft_config["default"]
    init = config.init_lora_weights if isinstance(config, LoraConfig) else True
    return isinstance(init, str) and init.startswith(MUTATING_INITS)


def _base_tensors(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    skipped = _mutated_layers(model)
    base = base_model(model)
    packed = (b for b in base.named_buffers() if b[0].endswith(PACKED_WEIGHTS))
    for name, tensor in (*base.named_parameters(remove_duplicate=False), *packed):
        parts = name.split(".")
        if any(part.startswith(TRAINED_PARTS) for part in parts):
            continue
        plain = ".".join(part for part in parts if part not in WRAPPERS)
        if not any(plain.startswith(f"{layer}.") for layer in skipped):
            yield plain, stored(base, name, tensor)


def _mutated_layers(model: PeftModel) -> tuple[str, ...]:
    # What is left of them differs in the last bits from one machine to the next. `attach_adapter`
    # keeps a fingerprint of what they were.
    if not changes_base(model):
        return ()
    modules = model.get_base_model().named_modules()
    return tuple(name for name, module in modules if isinstance(module, BaseTunerLayer))
