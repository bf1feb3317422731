"""Two processes train what one does: the same data, rates, losses and weights, and go on alike.

`make parity` writes the measured differences to docs/parity.md.
"""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from breaking import lines, started
from launching import (
    LORA,
    SAVING,
    TOLERANCE,
    Bench,
    Pairs,
    assert_goes_on,
    differences,
    matrix,
    measures_all,
    torchrun,
)
from newtune.run_dir import RunDir
from tiny_quantized import save_quantized_checkpoint

pytestmark = pytest.mark.xdist_group("ddp")  # they share two launches

ALL = matrix("full", "LoRA")
FEW = [
    "full, padded, accumulation 4, a short last step",
    "LoRA, packed, accumulation 4, a short last step",
]
SHORT = {"num_epochs": 1}
ROWS = {
    "unfrozen_parameters": ["^lm_head.weight$[100:300]", "model.norm"],
    "weight_decay": 0.1,
    "batch_size": 2,
    "max_steps": 3,
}
PACKED_BASES = ("torchao-float8", *(("awq", "torchao") if measures_all() else ()))
"""gloo passes no float8 on, which codes may be stored in."""
PACKED_BASE = {**LORA, "batch_size": 2, "max_steps": 3}
SAVED = {**SAVING, **LORA, **SHORT}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Train every case on one process and on two, and each on from the other's checkpoint."""
    bench = Bench.new(tmp_path_factory.mktemp("ddp"))
    pairs = Pairs(bench)
    for case in ALL if measures_all() else FEW:
        pairs.compare("DDP", case, {**ALL[case], **SHORT})
    if not measures_all():  # all that share sequences are in test_context.py
        for case in FEW:
            pairs.compare("CP", case, {**ALL[case], **SHORT}, context_parallel_size=2)
    pairs.alone("one-saved", **SAVED)
    pairs.alone("one-rows", **ROWS)
    pairs.together("two-rows", **ROWS)
    for form in PACKED_BASES:
        base = save_quantized_checkpoint(bench.root / form, form)
        pairs.alone(f"one-{form}", base_model=str(base), **PACKED_BASE)
        pairs.together(f"two-{form}", base_model=str(base), **PACKED_BASE)
    pairs.together("two-saved", **SAVED, ddp_backend="gloo", ddp_timeout=77)
    for start in ("one", "two"):
        checkpoint = bench.checkpoint(f"{start}-saved")
        pairs.together(f"{start}-to-two", **SAVED, resume_from_checkpoint=checkpoint)
    pairs.train()
    pairs.alone("two-to-one", **SAVED, resume_from_checkpoint=bench.checkpoint("two-saved"))
    pairs.train()
    return pairs


@pytest.fixture
def bench(pairs: Pairs) -> Bench:
    return pairs.bench


@pytest.mark.parametrize("other", ["one-to-two", "two-to-one"])
def test_a_run_goes_on_with_another_number_of_processes(bench: Bench, other: str) -> None:
    assert_goes_on(bench, "one-saved", other, tolerance=TOLERANCE)


def test_on_as_many_processes_a_run_goes_on_bit_for_bit(bench: Bench) -> None:
    assert_goes_on(bench, "two-saved", "two-to-two", tolerance=0)


def test_rows_that_stay_frozen_do_so_in_every_copy(bench: Bench) -> None:
    found = differences(bench, "one-rows", "two-rows")
    assert all(value <= TOLERANCE for value in found.values()), found
    (base,) = (bench.root / "base").glob("*.safetensors")
    before, after = load_file(base)["lm_head.weight"], bench.weights("two-rows")["lm_head.weight"]
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == [*range(100, 300)]


@pytest.mark.parametrize("form", PACKED_BASES)
def test_over_a_packed_base_two_processes_train_what_one_does(bench: Bench, form: str) -> None:
    found = differences(bench, f"one-{form}", f"two-{form}")
    assert all(value <= TOLERANCE for value in found.values()), found


def test_a_checkpoint_says_who_wrote_it(bench: Bench) -> None:
    manifest = json.loads((bench.root / "two-saved/checkpoint-3/manifest.json").read_text())
    assert (manifest["processes"], manifest["rows_per_step"]) == (2, 4)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= manifest["files"].keys()


def test_processes_hear_each_other(bench: Bench) -> None:
    first, second = (json.loads((bench.root / f"said-{r}.json").read_text()) for r in (0, 1))
    assert first["numbers"] == second["numbers"] == [[0.0, 0.5], [1.0, 0.5]]
    assert first["sums"] == second["sums"] == [3.0, 0.2]
    assert first["greatest"] == second["greatest"] == 7
    assert first["gathered"] == second["gathered"] == ["process 0", "process 1"]
    assert (first["main"], second["main"]) == ("done", None)
    assert first["heard"] == "OSError: no room"
    assert second["heard"].startswith("FailedElsewhere: process 0 failed, so")


TRAIN = ("-m", "newtune.cli.train")


def test_sigterm_to_the_launcher_saves_and_the_run_goes_on(bench: Bench, tmp_path: Path) -> None:
    long = {**LORA, "lora_dropout": 0.1, "batch_size": 2, "num_epochs": 12}
    whole, cut = bench.config("whole", **long), bench.config("cut", **long)
    metrics = bench.root / "cut" / "metrics.jsonl"
    with started(torchrun(2, *TRAIN, cut), tmp_path / "said") as launch:
        launch.wait_until(lambda: lines(metrics) >= 4, "four steps")
        launch.process.send_signal(signal.SIGTERM)
        launch.end()
    assert "SIGTERM received" in launch.said
    bench.python(2, *TRAIN, whole)
    saved = RunDir(bench.root / "cut").checkpoints()
    assert len(saved) == 1, launch.said
    assert 4 <= int(saved[0].name.split("-")[1]) < bench.lines("whole")[-1]["step"]
    bench.python(2, *TRAIN, cut, "--resume")
    ours, theirs = bench.weights("whole"), bench.weights("cut")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert bench.lines("whole") == bench.lines("cut")


def test_another_number_of_rows_per_step_is_refused(bench: Bench) -> None:
    config = bench.config(
        "grown",
        **LORA,
        gradient_accumulation_steps=4,
        resume_from_checkpoint=str(bench.root / "two-saved" / "checkpoint-3"),
    )
    said = bench.python(2, *TRAIN, config, code=2)
    assert "a step has 8 rows now" in said
    assert "`batch_size: 4` keeps them the same" in " ".join(said.split())


def test_the_table_of_differences(pairs: Pairs) -> None:
    """Two processes are one; `make parity` writes how far they differ."""
    pairs.write_parity()
