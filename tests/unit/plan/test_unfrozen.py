"""Which parameters and rows a pattern of `unfrozen_parameters` names."""

import pytest

from newtune.errors import ConfigError
from newtune.model.facts import read_model_facts
from newtune.plan.ledger import Ledger
from newtune.plan.targets import count_trainable
from newtune.plan.unfrozen import count_rows, plan_unfrozen, trained_rows
from tiny import tiny_config

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture
def facts(tmp_path):
    def read(family="llama", **config):
        tiny_config(family, **config).save_pretrained(tmp_path)
        return read_model_facts(str(tmp_path))

    return read


def refused(facts, *patterns):
    with pytest.raises(ConfigError) as caught:
        plan_unfrozen(patterns, facts, Ledger())
    return str(caught.value)


def test_ranges_of_one_parameter_are_joined_and_a_whole_one_wins():
    ranges = (f"{EMBEDDINGS}[:3]", f"{EMBEDDINGS}[2:5]", f"{EMBEDDINGS}[8:]", "lm_head")
    assert trained_rows(EMBEDDINGS, "", ranges) == ((0, 3), (2, 5), (8, None))
    assert count_rows(((0, 3), (2, 5), (8, None)), 10) == 7
    assert trained_rows(EMBEDDINGS, "", (*ranges, "model.embed")) is None
    assert trained_rows("lm_head.weight", "", ranges) is None
    assert trained_rows(EMBEDDINGS, "lm_head.weight", ("lm_head.weight[:4]",)) == ((0, 4),)


def test_the_plan_counts_the_rows_that_are_trained(facts):
    found = facts()
    patterns = (f"^{EMBEDDINGS}$[:32]", f"^{EMBEDDINGS}$[380:]", r"model\.norm")
    assert plan_unfrozen(patterns, found, Ledger()) == patterns
    assert count_trainable(found, None, patterns) == (32 + 4) * 32 + 32
    tied = facts(tie_word_embeddings=True)
    assert count_trainable(tied, None, ("lm_head.weight$[10:20]",)) == 10 * 32


@pytest.mark.parametrize(("pattern", "said"), [
    (f"{EMBEDDINGS}[:385]", f"reaches row 385, but `{EMBEDDINGS}` has 384"),
    (f"{EMBEDDINGS}[384:]", f"reaches row 385, but `{EMBEDDINGS}` has 384"),
    ("model.norm.weight[:4]", "rows of `model.norm.weight`, which is no matrix: its shape is [32]"),
    ("layers.1", "`layers.1` matches no parameter of this llama model from its first character"),
    ("model.layers.1.mlp.gate", None),
    ("model.layers.1.mlp.gat_proj", "Closest: `model.layers.0.mlp.gate_proj.weight`"),
])  # fmt: skip
def test_what_is_not_there_is_refused_before_weights_load(facts, pattern, said):
    if said is None:
        plan_unfrozen([pattern], facts(), Ledger())
    else:
        assert said in refused(facts(), "lm_head", pattern)


def test_names_of_a_mixtral_checkpoints_files_are_translated(facts):
    found, ledger = facts("mixtral"), Ledger()
    public = "model.layers.[1-9][0-9]*.block_sparse_moe.gate"
    experts = "model.layers.[1-9][0-9]*.block_sparse_moe.experts"
    planned = plan_unfrozen(["^lm_head.weight$", public, experts], found, ledger)
    shapes = found.parameter_shapes
    size = 384 * 32 + 4 * 32 + 3 * 4 * 64 * 32
    assert count_trainable(found, None, planned) == size
    assert shapes["model.layers.1.mlp.gate.weight"] == (4, 32)
    assert ledger.notices == (
        f"`unfrozen_parameters`: `{public}` is a name of the checkpoint's files; here that is "
        "`model.layers.1.mlp.gate.weight`.",
        f"`unfrozen_parameters`: `{experts}` is a name of the checkpoint's files; here that is "
        "`model.layers.1.mlp.experts.gate_up_proj`, `model.layers.1.mlp.experts.down_proj`.",
    )
    said = refused(found, r"model.layers.1.block_sparse_moe.experts.*.w1")
    assert "matches a part of `model.layers.1.mlp.experts.gate_up_proj`, which holds" in said
    assert "block_sparse_moe.experts.*.w3.weight` as one. Match all of them" in said
    assert "`model.layers.0.mlp.gate.weight`" in refused(found, "model.layers.1.sparse_moe.gate")
