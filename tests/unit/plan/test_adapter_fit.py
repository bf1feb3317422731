"""What an adapter's keys name and the model does not have is refused before weights load."""

import pytest

from configs import valid
from newtune.errors import ConfigError
from newtune.model.facts import read_model_facts
from newtune.plan.adapter import plan_adapter
from newtune.plan.ledger import Ledger
from tiny import tiny_config

EXPERTS = {"lora_target_parameters": ["mlp.experts.down_proj"], "lora_dropout": 0}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    def read(family):
        folder = tmp_path_factory.mktemp(family)
        tiny_config(family).save_pretrained(folder)
        return read_model_facts(str(folder))

    return {family: read(family) for family in ("llama", "mixtral")}


@pytest.mark.parametrize(("family", "keys", "said"), [
    ("llama", {"peft_layers_to_transform": [0, 2]},
     "peft_layers_to_transform: got 2; the model's layers are 0 to 1"),
    ("llama", {"peft_layers_to_transform": -1}, "got -1; the model's layers are 0 to 1"),
    ("llama", {"peft_layers_to_transform": 0, "lora_target_modules": ".*q_proj"},
     "peft_layers_to_transform: excludes a regex in `lora_target_modules`"),
    ("llama", {"lora_modules_to_save": ["embed_tokenz"]},
     "lora_modules_to_save: `embed_tokenz` is nothing that this model has. Did you mean `embed_to"),
    ("mixtral", {**EXPERTS, "lora_target_parameters": ["mlp.experts.down_prj"]},
     "lora_target_parameters: `mlp.experts.down_prj` is nothing that this model has. Did you mean "
     "`mlp.experts.down_proj`?"),
])  # fmt: skip
def test_what_is_not_there_is_refused(facts, family, keys, said):
    config = valid(adapter="lora", **{"lora_target_modules": ["q_proj"], **keys})
    with pytest.raises(ConfigError) as caught:
        plan_adapter(config, facts[family], Ledger(), None)
    assert said in str(caught.value)


@pytest.mark.parametrize(("family", "keys"), [
    ("llama", {"peft_layers_to_transform": [0, 1]}),
    ("llama", {"lora_modules_to_save": ["embed_tokens", "lm_head", "norm", "layers.0.mlp"]}),
    ("mixtral", EXPERTS),
])  # fmt: skip
def test_what_is_there_is_taken(facts, family, keys):
    config = valid(adapter="lora", **{"lora_target_modules": ["q_proj"], **keys})
    assert plan_adapter(config, facts[family], Ledger(), None) is not None
