"""Packed examples that would see each other are refused from the checkpoint's config alone."""

import pytest

from newtune.errors import SetupError
from newtune.model.facts import read_model_facts
from newtune.plan.isolation import refuse_leaking
from tiny import FAMILIES, LEAKING, tiny_config


def facts(folder, family, **config):
    tiny_config(family, **config).save_pretrained(folder)
    return read_model_facts(str(folder))


@pytest.mark.parametrize("family", sorted(LEAKING))
def test_families_that_leak_are_refused(tmp_path, family):
    with pytest.raises(SetupError, match="sample_packing: false"):
        refuse_leaking(facts(tmp_path, family), "sdpa")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - LEAKING))
def test_families_that_keep_apart_pass(tmp_path, family):
    refuse_leaking(facts(tmp_path, family), "sdpa")


def test_a_hybrid_without_a_layer_that_carries_a_state_passes(tmp_path):
    attention_only = {"layer_types": ["full_attention", "full_attention"]}
    refuse_leaking(facts(tmp_path, "granitemoehybrid", **attention_only), "sdpa")
