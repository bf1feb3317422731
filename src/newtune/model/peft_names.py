"""Layers that PEFT takes for something else by their names."""

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel


def taken_for_experts(model: PreTrainedModel) -> frozenset[str]:
    """Return the linear layers in whose place PEFT would adapt the experts.

    In families whose experts were linear layers once, PEFT translates `gate_proj`, `up_proj` and
    `down_proj` into the experts' parameters, those of dense layers and shared experts as well.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    last = {name.rpartition(".")[2] for name in linear}
    translated = {name for name in last if _is_translated(model, name)}
    return frozenset(name for name in linear if name.rpartition(".")[2] in translated)


def _is_translated(model: PreTrainedModel, name: str) -> bool:
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, conversions=None)
    except ValueError:  # a part of what it joins
        return True
    return name not in (config.target_modules or ())
