"""Two processes that share every layer train as one process does; with sharding, four do."""

import json
from pathlib import Path
from typing import Any

import pytest

from launching import Bench, assert_goes_on, differences, run, torchrun, write_parity
from newtune.training.checkpoint import saved_shapes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("tensor")]  # they share a launch

WORKER = Path(__file__).with_name("worker.py")
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0.1,
}
SAVING: dict[str, Any] = {"save_steps": 3, "save_strategy": None, "num_epochs": 1}
CASES: dict[str, dict[str, Any]] = {
    "full, packed, accumulation 4, a short last step": {
        **SAVING,
        "sample_packing": True,
        "batch_size": 4,
    },
    "LoRA on all layers, with dropout, padded, accumulation 2": {**LORA, **SAVING, "batch_size": 2},
}
SPLIT = {"tensor_parallel_size": 2}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Train every case on one process and on two, and on from what two have saved."""
    bench = Bench.new(tmp_path_factory.mktemp("tensor"))
    alone, together = [], []
    for number, case in enumerate(CASES.values()):
        alone.append(bench.config(f"one-{number}", **case))
        together.append(bench.config(f"two-{number}", **case, **SPLIT))
        on = {**case, "resume_from_checkpoint": str(bench.root / f"two-{number}" / "checkpoint-3")}
        together.append(bench.config(f"two-to-two-{number}", **on, **SPLIT))
        alone.append(bench.config(f"two-to-one-{number}", **on))
    run(torchrun(2, WORKER, *together))
    run(torchrun(1, WORKER, *alone))
    return bench


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_that_share_layers_are_one(bench: Bench, number: int) -> None:
    found = differences(bench, f"one-{number}", f"two-{number}")
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_run_goes_on_split_or_not(bench: Bench, number: int) -> None:
    assert_goes_on(bench, f"two-{number}", f"two-to-two-{number}", tolerance=0)
    if number == 0:  # what dropout draws after resuming is another process's
        assert_goes_on(bench, f"one-{number}", f"two-to-one-{number}", tolerance=TOLERANCE)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_is_written_is_whole(bench: Bench, number: int) -> None:
    for folder in (".", "checkpoint-3"):
        one, two = (bench.root / f"{name}-{number}" / folder for name in ("one", "two"))
        assert saved_shapes(one) == saved_shapes(two) != {}


def test_both_processes_have_the_same_rows(bench: Bench) -> None:
    plan = json.loads((bench.root / "two-0" / "plan.json").read_text())
    steps = plan["training"]["steps"]
    assert (steps["world_size"], steps["accumulation"], steps["rows_per_step"]) == (1, 4, 4)
    said = "2 processes share every layer and its rows"
    assert plan["reasons"]["training.parallel"] == said


@pytest.mark.slow
def test_four_processes_that_share_layers_and_parameters_are_one(tmp_path: Path) -> None:
    bench = Bench.new(tmp_path)
    split = {**SPLIT, "dp_shard_size": 2}
    alone, together = [], []
    for name, changes in {"full": {"sample_packing": True}, "lora": LORA}.items():
        case = {**SAVING, **changes, "batch_size": 4}
        if "lora_dropout" in case:
            case["lora_dropout"] = 0
        on = {**case, "resume_from_checkpoint": str(tmp_path / f"four-{name}" / "checkpoint-3")}
        alone.append(bench.config(f"one-{name}", **case))
        together.append(bench.config(f"four-{name}", **case, **split))
        together.append(bench.config(f"four-on-{name}", **on, **split))
    run(torchrun(4, WORKER, *together))
    run(torchrun(1, WORKER, *alone))
    found = {}
    for name in ("full", "lora"):
        values = differences(bench, f"one-{name}", f"four-{name}")
        assert all(value <= TOLERANCE for value in values.values()), values
        assert_goes_on(bench, f"four-{name}", f"four-on-{name}", tolerance=0)
        found[f"TP 2 × FSDP2 2: {name}"] = values
    write_parity(found)


def test_the_table_of_differences(bench: Bench) -> None:
    """With NEWTUNE_PARITY set to a file, the measured differences are written to it."""
    found = {
        f"TP: {case}": differences(bench, f"one-{number}", f"two-{number}")
        for number, case in enumerate(CASES)
    }
    write_parity(found)
