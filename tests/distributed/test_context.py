"""Processes that share every sequence train as one process does, packed examples kept apart."""

import json
from pathlib import Path

import pytest

from launching import (
    LORA,
    PACKED,
    SAVING,
    Bench,
    Pairs,
    assert_goes_on,
    matrix,
    relative,
    run,
    torchrun,
)
from newtune.training.checkpoint import saved_shapes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("context")]  # they share their launches

HERE = Path(__file__).parent
SHORT = {"num_epochs": 1, "learning_rate": 5e-3}
"""Adam makes of the rounding of a gradient near 0 a part of the rate: with 1e-2, one case of 16
ended 1.1e-5 apart in its weights, where losses and gradients' norms were 2e-7 apart."""
ALL = {
    case: {**values, **SHORT} for case, values in matrix("full", "LoRA", "QLoRA", rows=1).items()
}
SHARED = {"context_parallel_size": 2}
SHARDED = {**SHARED, "fsdp_config": {"reshard_after_forward": True}}
SAVED = {**SAVING, **SHORT, **PACKED}
ROUNDED = {**LORA, **PACKED, **SHORT, "bf16": True, "batch_size": 4}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Train every case on one process and on two, and on from what two have saved."""
    pairs = Pairs(Bench.new(tmp_path_factory.mktemp("context")))
    for case, values in ALL.items():
        pairs.compare("CP", case, values, **SHARED)
        pairs.compare("CP × FSDP2", case, values, **SHARDED)
    pairs.alone("one-bfloat16", **ROUNDED)
    pairs.together("two-bfloat16", **ROUNDED, **SHARED)
    pairs.alone("one-saved", **SAVED)
    pairs.together("two-saved", **SAVED, **SHARED)
    on = {**SAVED, "resume_from_checkpoint": pairs.bench.checkpoint("two-saved")}
    pairs.together("two-to-two", **on, **SHARED)
    pairs.train()
    pairs.alone("two-to-one", **on)
    pairs.train()
    return pairs


def test_the_table_of_differences(pairs: Pairs) -> None:
    """Two processes that share sequences are one; `make parity` writes how far they differ."""
    pairs.write_parity()


def test_a_run_goes_on_shared_or_not(pairs: Pairs) -> None:
    assert_goes_on(pairs.bench, "two-saved", "two-to-two", tolerance=0)
    assert_goes_on(pairs.bench, "one-saved", "two-to-one", tolerance=1e-5)
    for folder in (".", "checkpoint-3"):
        one, two = (pairs.bench.root / f"{by}-saved" / folder for by in ("one", "two"))
        assert saved_shapes(one) == saved_shapes(two) != {}


def test_in_bfloat16_the_losses_are_those_of_one_process_up_to_its_rounding(pairs: Pairs) -> None:
    one, two = pairs.bench.lines("one-bfloat16"), pairs.bench.lines("two-bfloat16")
    for left, right in zip(one, two, strict=True):
        for key in left.keys() & {"loss", "eval_loss"}:
            assert relative(right[key], left[key]) < 2**-8, (left, right)
            assert right.get("tokens") == left.get("tokens")


def test_both_processes_have_the_same_rows(pairs: Pairs) -> None:
    plan = json.loads((pairs.bench.root / "two-saved" / "plan.json").read_text())
    steps = plan["training"]["steps"]
    assert (steps["world_size"], steps["accumulation"], steps["rows_per_step"]) == (1, 4, 4)
    assert plan["reasons"]["training.parallel"] == "2 processes share every sequence"


def test_the_table_of_four_processes(tmp_path: Path) -> None:
    pairs = Pairs(Bench.new(tmp_path), processes=4)
    layouts = {"DP 2 × CP 2": {}, "FSDP2 2 × CP 2": {"dp_shard_size": 2}, "CP 4": {}}
    for layout, sizes in layouts.items():
        size = 4 if layout == "CP 4" else 2
        for kind, changes in {"full": {}, "LoRA": LORA}.items():
            case = {**changes, **PACKED, **SHORT, "batch_size": 4}
            pairs.compare(layout, kind, case, **sizes, context_parallel_size=size)
    pairs.train()
    pairs.write_parity()


def test_every_family_attends_to_shared_sequences_as_to_whole_ones(tmp_path: Path) -> None:
    """Windows, soft-caps, few key heads, recomputed layers, padded rows: `sharing.py`."""
    launch = torchrun(2, HERE / "sharing.py", tmp_path / "found.json")
    run(["env", f"PYTHONPATH={HERE.parent}", *launch])
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) > 20
    for kind, values in found.items():
        assert all(value <= 2e-6 for value in values.values()), (kind, values)
