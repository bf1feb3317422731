"""Two copies of a model, each shared by two processes, train as one process does."""

import json
from dataclasses import asdict

import pytest

from launching import LORA, TOLERANCE, Bench, Pairs, assert_goes_on, matrix, measures_all
from newtune.plan.sharing import MeshPlan
from newtune.training.checkpoint import saved_shapes

pytestmark = pytest.mark.xdist_group("hsdp")  # they share a launch on four processes

TWO_COPIES = {"dp_replicate_size": 2, "dp_shard_size": 2}
ALL = matrix("full", "LoRA", "QLoRA", rows=4)
FEW = ["full, packed, accumulation 4, a short last step"]
SAVED = {**LORA, "num_epochs": 1, "batch_size": 4, "save_steps": 3, "save_strategy": None}
KEPT = {"reshard_after_forward": False}
PARTS = {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Train every case on one process and on four, and on from what four have saved."""
    pairs = Pairs(Bench.new(tmp_path_factory.mktemp("hsdp")), processes=4)
    for case in ALL if measures_all() else FEW:
        pairs.compare("HSDP 2 × 2", case, ALL[case], **TWO_COPIES)
    pairs.alone("one", **SAVED)
    pairs.together("four", **SAVED, dp_replicate_size=2, fsdp_config=KEPT)
    pairs.together("parts", **SAVED, **TWO_COPIES, **PARTS)
    for start in ("four", "parts"):
        on = {**SAVED, "resume_from_checkpoint": pairs.bench.checkpoint(start)}
        pairs.together(f"{start}-to-four", **on, **TWO_COPIES)
    pairs.train()
    pairs.alone("four-to-one", **SAVED, resume_from_checkpoint=pairs.bench.checkpoint("four"))
    pairs.train()
    return pairs


def test_the_table_of_differences(pairs: Pairs) -> None:
    """Four processes that share two copies are one; `make parity` writes how far they differ."""
    pairs.write_parity()


def test_a_run_goes_on_with_copies_or_alone(pairs: Pairs) -> None:
    assert_goes_on(pairs.bench, "four", "four-to-four", tolerance=0)
    assert_goes_on(pairs.bench, "four", "parts-to-four", tolerance=0)
    assert_goes_on(pairs.bench, "one", "four-to-one", tolerance=TOLERANCE)


def test_what_is_written_is_whole(pairs: Pairs) -> None:
    root = pairs.bench.root
    for folder in (".", "checkpoint-3"):
        assert saved_shapes(root / "four" / folder) == saved_shapes(root / "one" / folder) != {}
    plan = json.loads((root / "four" / "plan.json").read_text())
    assert plan["training"]["parallel"]["mesh"] == asdict(MeshPlan(replicas=2, shards=2))
    said = "HSDP: 2 copies of the model, each shared by 2 processes"
    assert plan["reasons"]["training.parallel"] == said
