"""Two processes that share every layer train as one process does; with sharding, four do."""

import json

import pytest

from launching import (
    LORA,
    PACKED,
    TOLERANCE,
    Bench,
    Pairs,
    assert_goes_on,
    differences,
    matrix,
    measures_all,
)
from newtune.training.checkpoint import saved_shapes

pytestmark = pytest.mark.xdist_group("tensor")  # they share their launches

SPLIT = {"tensor_parallel_size": 2}
SHORT = {"num_epochs": 1}
ALL = matrix("full", "LoRA", rows=1)
# with 1e-8, one number of an A whose gradient is next to nothing differs by 1.5e-4 in the end
ALL["LoRA, packed, accumulation 1"]["adam_epsilon"] = 1e-6
FEW: list[str] = []
SAVING = {**SHORT, "batch_size": 4, "save_steps": 3, "save_strategy": None}
SAVED = {"full": {**SAVING, **PACKED}, "lora": {**SAVING, **LORA, "lora_dropout": 0.1}}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Train every case on one process and on two, and on from what two have saved."""
    pairs = Pairs(Bench.new(tmp_path_factory.mktemp("tensor")))
    for case in ALL if measures_all() else FEW:
        pairs.compare("TP", case, {**ALL[case], **SHORT}, **SPLIT)
    for name, values in SAVED.items():
        pairs.alone(f"one-{name}", **values)
        pairs.together(f"two-{name}", **values, **SPLIT)
        on = {**values, "resume_from_checkpoint": pairs.bench.checkpoint(f"two-{name}")}
        pairs.together(f"two-to-two-{name}", **on, **SPLIT)
    pairs.train()
    on = {**SAVED["full"], "resume_from_checkpoint": pairs.bench.checkpoint("two-full")}
    pairs.alone("two-to-one-full", **on)
    pairs.train()
    return pairs


def test_the_table_of_differences(pairs: Pairs) -> None:
    """Two processes that share layers are one; `make parity` writes how far they differ."""
    pairs.write_parity()


@pytest.mark.parametrize("name", SAVED)
def test_a_run_is_as_on_one_process_and_goes_on_split_or_not(pairs: Pairs, name: str) -> None:
    found = differences(pairs.bench, f"one-{name}", f"two-{name}")
    assert all(value <= TOLERANCE for value in found.values()), found
    assert_goes_on(pairs.bench, f"two-{name}", f"two-to-two-{name}", tolerance=0)
    if name == "full":  # what dropout draws after resuming is another process's
        assert_goes_on(pairs.bench, "one-full", "two-to-one-full", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", SAVED)
def test_what_is_written_is_whole(pairs: Pairs, name: str) -> None:
    for folder in (".", "checkpoint-3"):
        one, two = (pairs.bench.root / f"{by}-{name}" / folder for by in ("one", "two"))
        assert saved_shapes(one) == saved_shapes(two) != {}


def test_both_processes_have_the_same_rows(pairs: Pairs) -> None:
    plan = json.loads((pairs.bench.root / "two-full" / "plan.json").read_text())
    steps = plan["training"]["steps"]
    assert (steps["world_size"], steps["accumulation"], steps["rows_per_step"]) == (1, 4, 4)
    said = "2 processes share every layer and its rows"
    assert plan["reasons"]["training.parallel"] == said


@pytest.mark.slow
def test_the_table_of_four_processes_that_share_layers_and_parameters(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pairs = Pairs(Bench.new(tmp_path_factory.mktemp("four")), processes=4)
    split = {**SPLIT, "dp_shard_size": 2}
    for name, values in SAVED.items():
        case = {**values, "lora_dropout": 0} if name == "lora" else values
        pairs.compare("TP 2 × FSDP2 2", name, case, **split)
        checkpoint = pairs.bench.checkpoint(f"TP 2 × FSDP2 2: {name}")
        pairs.together(f"four-on-{name}", **case, **split, resume_from_checkpoint=checkpoint)
    pairs.train()
    for name in SAVED:
        assert_goes_on(pairs.bench, f"TP 2 × FSDP2 2: {name}", f"four-on-{name}", tolerance=0)
    pairs.write_parity()
