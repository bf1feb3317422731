"""Two copies of a model, each shared by two processes, train as one process does."""

import json
from pathlib import Path
from typing import Any

import pytest

from launching import Bench, assert_goes_on, differences, run, torchrun, write_parity
from newtune.training.checkpoint import saved_shapes

pytestmark = pytest.mark.xdist_group("hsdp")  # they share a launch on four processes

WORKER = Path(__file__).with_name("worker.py")
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0,
}
TWO_COPIES = {"dp_replicate_size": 2, "dp_shard_size": 2}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full, packed, accumulation 2": ({"sample_packing": True, "batch_size": 8}, TWO_COPIES),
    "LoRA, padded, accumulation 1": (
        {**LORA, "batch_size": 4, "save_steps": 3, "save_strategy": None},
        {"dp_replicate_size": 2, "fsdp_config": {"reshard_after_forward": False}},
    ),
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Train every case on one process and on four, and on from what four have saved."""
    bench = Bench.new(tmp_path_factory.mktemp("hsdp"))
    alone, together = [], []
    for number, (case, axes) in enumerate(CASES.values()):
        alone.append(bench.config(f"one-{number}", **case))
        together.append(bench.config(f"four-{number}", **case, **axes))
    saved, _ = CASES["LoRA, padded, accumulation 1"]
    on = {**saved, "resume_from_checkpoint": str(bench.root / "four-1" / "checkpoint-3")}
    together.append(bench.config("four-to-four", **on, **TWO_COPIES))
    run(torchrun(4, WORKER, *together))
    run(torchrun(1, WORKER, *alone, bench.config("four-to-one", **on)))
    return bench


@pytest.mark.parametrize("case", CASES)
def test_four_processes_that_share_two_copies_are_one(bench: Bench, case: str) -> None:
    number = list(CASES).index(case)
    found = differences(bench, f"one-{number}", f"four-{number}")
    assert all(value <= TOLERANCE for value in found.values()), found


def test_a_run_goes_on_with_copies_or_alone(bench: Bench) -> None:
    assert_goes_on(bench, "four-1", "four-to-four", tolerance=0)
    assert_goes_on(bench, "one-1", "four-to-one", tolerance=TOLERANCE)


def test_what_is_written_is_whole(bench: Bench) -> None:
    for folder in ("four-0", "four-1", "four-1/checkpoint-3"):
        one = folder.replace("four", "one")
        assert saved_shapes(bench.root / folder) == saved_shapes(bench.root / one) != {}
    plan = json.loads((bench.root / "four-0" / "plan.json").read_text())
    assert plan["training"]["parallel"]["mesh"] == {"replicas": 2, "shards": 2, "tensor": 1}
    said = "HSDP: 2 copies of the model, each shared by 2 processes"
    assert plan["reasons"]["training.parallel"] == said


def test_the_table_of_differences(bench: Bench) -> None:
    """With NEWTUNE_PARITY set to a file, the measured differences are written to it."""
    found = {
        f"HSDP 2 × 2: {case}": differences(bench, f"one-{number}", f"four-{number}")
        for number, case in enumerate(CASES)
    }
    write_parity(found)
