"""Processes that share every sequence train as one process does, packed examples kept apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from launching import Bench, assert_goes_on, differences, run, torchrun, write_parity
from newtune.training.checkpoint import saved_shapes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("context")]  # they share a launch

HERE = Path(__file__).parent
WORKER = HERE / "worker.py"
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0,
}
MODELS: dict[str, dict[str, Any]] = {"full": {}, "LoRA": LORA}
DATA = {"padded": {}, "packed": {"sample_packing": True}}
BATCHES = {1: "accumulation 1", 4: "accumulation 4, a short last step"}
SAVING: dict[str, Any] = {"save_steps": 3, "save_strategy": None, "num_epochs": 1}
RATE = {"learning_rate": 5e-3}
"""Adam makes of the rounding of a gradient near 0 a part of the rate: with 1e-2, one of 16 cases
ended 1.1e-5 apart in its weights, where the gradients' norms differed by 2e-7."""
CASES = {
    f"{model}, {data}, {batch}": {
        **MODELS[model],
        **DATA[data],
        **SAVING,
        **RATE,
        "batch_size": rows,
    }
    for model in MODELS
    for data in DATA
    for rows, batch in BATCHES.items()
}
SHARED = {"context_parallel_size": 2}
SHARDED = {**SHARED, "fsdp_config": {"reshard_after_forward": True}}
RESUMED = "full, packed, accumulation 4, a short last step"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Train every case on one process and on two, and on from what two have saved."""
    bench = Bench.new(tmp_path_factory.mktemp("context"))
    alone, together = [], []
    for number, (name, case) in enumerate(CASES.items()):
        alone.append(bench.config(f"one-{number}", **case))
        together.append(bench.config(f"two-{number}", **case, **SHARED))
        together.append(bench.config(f"sharded-{number}", **case, **SHARDED))
        if name == RESUMED:
            saved = str(bench.root / f"two-{number}" / "checkpoint-3")
            on = {**case, "resume_from_checkpoint": saved}
            together.append(bench.config("two-to-two", **on, **SHARED))
            alone.append(bench.config("two-to-one", **on))
    run(torchrun(2, WORKER, *together))
    run(torchrun(1, WORKER, *alone))
    return bench


@pytest.mark.parametrize("kind", ["two", "sharded"])
@pytest.mark.parametrize("case", CASES)
def test_processes_that_share_sequences_are_one(bench: Bench, case: str, kind: str) -> None:
    number = list(CASES).index(case)
    found = differences(bench, f"one-{number}", f"{kind}-{number}")
    assert all(value <= TOLERANCE for value in found.values()), found
    for folder in (".", "checkpoint-3"):
        one, two = (bench.root / f"{name}-{number}" / folder for name in ("one", kind))
        assert saved_shapes(one) == saved_shapes(two) != {}


def test_a_run_goes_on_shared_or_not(bench: Bench) -> None:
    number = list(CASES).index(RESUMED)
    assert_goes_on(bench, f"two-{number}", "two-to-two", tolerance=0)
    assert_goes_on(bench, f"one-{number}", "two-to-one", tolerance=TOLERANCE)


def test_both_processes_have_the_same_rows(bench: Bench) -> None:
    number = list(CASES).index(RESUMED)
    plan = json.loads((bench.root / f"two-{number}" / "plan.json").read_text())
    steps = plan["training"]["steps"]
    assert (steps["world_size"], steps["accumulation"], steps["rows_per_step"]) == (1, 4, 4)
    assert plan["reasons"]["training.parallel"] == "2 processes share every sequence"


def test_pairs_that_share_sequences_average_their_gradients(tmp_path: Path) -> None:
    bench = Bench.new(tmp_path)
    alone, together = [], []
    kinds = {"DP 2 × CP 2": {}, "FSDP2 2 × CP 2": {"dp_shard_size": 2}, "CP 4": {}}
    for model, changes in MODELS.items():
        case = {**changes, "sample_packing": True, "batch_size": 4, "num_epochs": 1}
        alone.append(bench.config(f"one-{model}", **case))
        for kind, layout in kinds.items():
            size = 4 if kind == "CP 4" else 2
            name = f"{kind}-{model}"
            together.append(bench.config(name, **case, **layout, context_parallel_size=size))
    run(torchrun(4, WORKER, *together))
    run(torchrun(1, WORKER, *alone))
    found = {
        f"{kind}: {model}": differences(bench, f"one-{model}", f"{kind}-{model}")
        for kind in kinds
        for model in MODELS
    }
    write_parity(found)
    assert all(value <= TOLERANCE for each in found.values() for value in each.values()), found


def test_every_family_attends_to_shared_sequences_as_to_whole_ones(tmp_path: Path) -> None:
    """Windows, soft-caps, few key heads, recomputed layers, padded rows: `sharing.py`."""
    launch = torchrun(2, HERE / "sharing.py", tmp_path / "found.json")
    run(["env", f"PYTHONPATH={HERE.parent}", *launch])
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) > 20
    for kind, values in found.items():
        assert all(value <= 2e-6 for value in values.values()), (kind, values)


def test_the_table_of_differences(bench: Bench) -> None:
    """With NEWTUNE_PARITY set to a file, the measured differences are written to it."""
    found = {
        f"{kind}: {case}": differences(bench, f"one-{number}", f"{name}-{number}")
        for number, case in enumerate(CASES)
        for kind, name in (("CP", "two"), ("CP × FSDP2", "sharded"))
    }
    write_parity(found)
