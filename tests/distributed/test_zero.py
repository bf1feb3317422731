"""A model that DeepSpeed shares out over two processes trains as one process does."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launching import Bench, assert_goes_on, differences, run, torchrun, write_parity
from newtune.training.checkpoint import saved_shapes

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.xdist_group("zero")  # they share their launches

WORKER = Path(__file__).with_name("worker.py")
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0,
}
PACKED = {"sample_packing": True}


def zero(stage: int, **options: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a stage; a tiny model is taken apart whole."""
    whole = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {"zero_optimization": {"stage": stage, **whole, **options}}


CPU = {"device": "cpu", "pin_memory": True}
SHARED = {
    "ZeRO-1": zero(1),
    "ZeRO-2": zero(2, reduce_bucket_size="auto"),
    "ZeRO-3": zero(3),
    "ZeRO-3, all on the CPU": zero(3, offload_optimizer=CPU, offload_param=CPU),
}
TRAINED: dict[str, dict[str, Any]] = {
    f"{kind}, {form}, accumulation {'1' if rows == 2 else '4, a short last step'}": {
        **values,
        **packing,
        "batch_size": rows,
    }
    for kind, values in {"full": {}, "LoRA": LORA}.items()
    for form, packing in {"padded": {}, "packed": PACKED}.items()
    for rows in (2, 8)
}
ALL = [(how, what) for how in SHARED for what in TRAINED]
FEW = [
    ("ZeRO-1", "LoRA, packed, accumulation 4, a short last step"),
    ("ZeRO-2", "full, padded, accumulation 4, a short last step"),
    ("ZeRO-3", "full, packed, accumulation 1"),
    ("ZeRO-3, all on the CPU", "LoRA, padded, accumulation 4, a short last step"),
]
CASES = ALL if "NEWTUNE_PARITY" in os.environ else FEW
TOLERANCE = 1e-5


SAVING: dict[str, Any] = {"batch_size": 4, "save_steps": 3, "save_strategy": None}
ENGINES: dict[str, dict[str, Any]] = {
    "one": {},
    "zero3": {"deepspeed": SHARED["ZeRO-3"]},
    "fsdp2": {"fsdp_config": {"reshard_after_forward": True}},
}
MOVES = [("one", "zero3"), ("zero3", "one"), ("zero3", "fsdp2"), ("fsdp2", "zero3")]
AGAIN: dict[str, dict[str, Any]] = {
    "ZeRO-3, full": {"deepspeed": SHARED["ZeRO-3"]},
    "ZeRO-2, LoRA": {**LORA, **PACKED, "deepspeed": SHARED["ZeRO-2"]},
    "ZeRO-1, full, bfloat16": {"bf16": True, "deepspeed": SHARED["ZeRO-1"]},
    "ZeRO-3, LoRA, bfloat16": {**LORA, "bf16": True, "deepspeed": "zero3_bf16_cpuoffload_all"},
}
"""Runs that stop after their third step and go on as they were."""
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True, "batch_size": 4}
BEST = {"eval_generate": True, "eval_max_new_tokens": 4, "load_best_model_at_end": True}
ANSWERS = {**LORA, **BEST, "batch_size": 4, "save_strategy": None}
FURTHER: dict[str, tuple[dict[str, Any], str]] = {
    "QLoRA": (QLORA, "ZeRO-3"),
    "answers, the best at the end": (ANSWERS, "ZeRO-3"),
    "weights and gradients clipped": ({"batch_size": 4, "max_grad_norm": 0.1}, "ZeRO-2"),
    "a LoRA on the head, evaluated first": (
        {**LORA, "lora_modules_to_save": ["lm_head"], "eval_on_start": True, "batch_size": 2},
        "ZeRO-3",
    ),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Train every case on one process and shared over two, and each on from another's."""
    bench = Bench.new(tmp_path_factory.mktemp("zero"))
    alone = [bench.config(f"one: {what}", **TRAINED[what]) for what in {w for _, w in CASES}]
    together = [
        bench.config(f"two: {how}: {what}", **TRAINED[what], deepspeed=SHARED[how])
        for how, what in CASES
    ]
    for name, (values, how) in FURTHER.items():
        alone.append(bench.config(f"one: {name}", **values))
        together.append(bench.config(f"two: {name}", **values, deepspeed=SHARED[how]))
    alone.append(bench.config("alone", **SAVING, deepspeed=SHARED["ZeRO-3, all on the CPU"]))
    for engine, values in ENGINES.items():
        group = alone if engine == "one" else together
        group.append(bench.config(engine, **SAVING, **values))
    for name, values in AGAIN.items():
        together.append(bench.config(name, **SAVING, **values))
        together.append(going_on(bench, f"{name} again", name, **values))
    for start, end in MOVES:
        if end != "one":
            together.append(going_on(bench, f"{start} to {end}", start, **ENGINES[end]))
    run(torchrun(1, WORKER, *alone))
    for start in range(0, len(together), 12):  # a launch is given ten minutes
        run(torchrun(2, WORKER, *together[start : start + 12]))
    run(torchrun(1, WORKER, going_on(bench, "zero3 to one", "zero3")))
    return bench


def going_on(bench: Bench, name: str, start: str, **values: Any) -> Path:
    checkpoint = str(bench.root / start / "checkpoint-3")
    return bench.config(name, **SAVING, **values, resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(("how", "what"), CASES)
def test_two_processes_that_share_a_model_are_one(bench: Bench, how: str, what: str) -> None:
    found = differences(bench, f"one: {what}", f"two: {how}: {what}")
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("name", FURTHER)
def test_what_else_is_as_on_one_process(bench: Bench, name: str) -> None:
    found = differences(bench, f"one: {name}", f"two: {name}")
    assert all(value <= TOLERANCE for value in found.values()), found


def test_one_process_offloads_and_is_as_without(bench: Bench) -> None:
    found = differences(bench, "one", "alone")
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize(("start", "end"), MOVES)
def test_a_run_goes_on_under_another_engine(bench: Bench, start: str, end: str) -> None:
    assert_goes_on(bench, "one", f"{start} to {end}", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", AGAIN)
def test_shared_as_before_a_run_goes_on_bit_for_bit(bench: Bench, name: str) -> None:
    assert_goes_on(bench, name, f"{name} again", tolerance=0)


def test_the_files_are_those_of_one_process(bench: Bench) -> None:
    for folder in (".", "checkpoint-3"):
        one, two = (
            json.loads((bench.root / name / folder / "manifest.json").read_text())
            for name in ("one", "zero3")
        )
        plain, of_ranks = {"rng_state.pth"}, {"rng_state_0.pth", "rng_state_1.pth"}
        assert one["files"].keys() - plain == two["files"].keys() - of_ranks
        assert one.get("base") == two.get("base")
        shapes = [saved_shapes(bench.root / name / folder) for name in ("one", "zero3")]
        assert shapes[0] == shapes[1] != {}


@pytest.mark.parametrize("name", [name for name in AGAIN if "bfloat16" in name])
def test_in_bfloat16_the_loss_goes_down(bench: Bench, name: str) -> None:
    losses = [line["loss"] for line in bench.lines(name) if "loss" in line]
    assert losses[-1] < losses[0]
    assert {str(tensor.dtype) for tensor in bench.weights(name).values()} == {"torch.float32"}


def test_the_table_of_differences(bench: Bench) -> None:
    """With NEWTUNE_PARITY set to a file, the measured differences are written to it."""
    found = {
        f"{how}: {what}": differences(bench, f"one: {what}", f"two: {how}: {what}")
        for how, what in CASES
    }
    write_parity(found)


@pytest.mark.slow  # its Adam is compiled first
def test_deepspeeds_own_adam_steps_and_goes_on_as_torchs(tmp_path: Path) -> None:
    bench = Bench.new(tmp_path)
    saving = {**SAVING, "num_epochs": 1, "weight_decay": 0.1}
    forced = {**zero(2, offload_optimizer=CPU), "zero_force_ds_cpu_optimizer": True}
    run(
        torchrun(
            1,
            WORKER,
            bench.config("one", **saving),
            bench.config("adam", **saving, deepspeed=forced),
            going_on(bench, "adam to one", "adam", num_epochs=1, weight_decay=0.1),
            going_on(bench, "one to adam", "one", num_epochs=1, weight_decay=0.1, deepspeed=forced),
        )
    )
    found = differences(bench, "one", "adam")
    assert all(value <= TOLERANCE for value in found.values()), found
    for name in ("adam to one", "one to adam"):
        assert_goes_on(bench, "one", name, tolerance=TOLERANCE)
