"""A model that DeepSpeed shares out over two processes trains as one process does."""

import json
from pathlib import Path
from typing import Any

import pytest

from launching import (
    LORA,
    PACKED,
    QLORA,
    SAVING,
    TOLERANCE,
    Bench,
    Pairs,
    assert_goes_on,
    differences,
    matrix,
    measures_all,
)
from newtune.training.checkpoint import saved_shapes

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.xdist_group("zero")  # they share their launches


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
ALL = {how: matrix("full", "LoRA", *(["QLoRA"] if how == "ZeRO-3" else [])) for how in SHARED}
FEW = {
    "ZeRO-1": "LoRA, packed, accumulation 4, a short last step",
    "ZeRO-2": "full, padded, accumulation 4, a short last step",
    "ZeRO-3": "full, packed, accumulation 1",
    "ZeRO-3, all on the CPU": "LoRA, padded, accumulation 4, a short last step",
}
SHORT = {"num_epochs": 1}
ENGINES: dict[str, dict[str, Any]] = {
    "one": {},
    "zero3": {"deepspeed": SHARED["ZeRO-3"]},
    "fsdp2": {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
}
MOVES = [("one", "zero3"), ("zero3", "one"), ("zero3", "fsdp2"), ("fsdp2", "zero3")]
"""FSDP2 goes on from a whole checkpoint, and leaves one in parts."""
AGAIN: dict[str, dict[str, Any]] = {
    "ZeRO-3, full": {"deepspeed": SHARED["ZeRO-3"]},
    "ZeRO-2, LoRA": {**LORA, **PACKED, "deepspeed": SHARED["ZeRO-2"]},
}
if measures_all():
    AGAIN |= {
        "ZeRO-1, full, bfloat16": {"bf16": True, "deepspeed": SHARED["ZeRO-1"]},
        "ZeRO-3, LoRA, bfloat16": {**LORA, "bf16": True, "deepspeed": "zero3_bf16_cpuoffload_all"},
    }
"""Runs that stop after their third step and go on as they were."""
BEST = {"eval_generate": True, "eval_max_new_tokens": 4, "load_best_model_at_end": True}
ANSWERS = {**LORA, **BEST, "batch_size": 4, "save_strategy": None}
FURTHER: dict[str, tuple[dict[str, Any], str]] = {
    "QLoRA": ({**QLORA, "batch_size": 4}, "ZeRO-3"),
    "answers, the best at the end": (ANSWERS, "ZeRO-3"),
    "weights and gradients clipped": ({"batch_size": 4, "max_grad_norm": 0.1}, "ZeRO-2"),
    "a LoRA on the head, evaluated first": (
        {**LORA, "lora_modules_to_save": ["lm_head"], "eval_on_start": True, "batch_size": 2},
        "ZeRO-3",
    ),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Train every case on one process and shared over two, and each on from another's."""
    pairs = Pairs(Bench.new(tmp_path_factory.mktemp("zero")))
    for how, cases in ALL.items():
        for case, values in cases.items():
            if measures_all() or case == FEW[how]:
                pairs.compare(how, case, {**SHORT, **values}, deepspeed=SHARED[how])
    for name, (values, how) in FURTHER.items():
        pairs.alone(f"one: {name}", **SHORT, **values)
        pairs.together(f"two: {name}", **SHORT, **values, deepspeed=SHARED[how])
    saving = {**SAVING, **SHORT}
    pairs.alone("alone", **saving, deepspeed=SHARED["ZeRO-3, all on the CPU"])
    for engine, values in ENGINES.items():
        train = pairs.alone if engine == "one" else pairs.together
        train(engine, **saving, **values)
    for name, values in AGAIN.items():
        pairs.together(name, **saving, **values)
        pairs.together(f"{name} again", **saving, **values, **going_on(pairs.bench, name))
    for start, end in MOVES:
        if end != "one":
            on = {**ENGINES[end], **going_on(pairs.bench, start)}
            pairs.together(f"{start} to {end}", **saving, **on)
    pairs.train()
    pairs.alone("zero3 to one", **saving, **going_on(pairs.bench, "zero3"))
    pairs.train()
    return pairs


def going_on(bench: Bench, start: str) -> dict[str, str]:
    return {"resume_from_checkpoint": bench.checkpoint(start)}


def test_the_table_of_differences(pairs: Pairs) -> None:
    """Two processes that share a model are one; `make parity` writes how far they differ."""
    pairs.write_parity()


@pytest.mark.parametrize("name", FURTHER)
def test_what_else_is_as_on_one_process(pairs: Pairs, name: str) -> None:
    found = differences(pairs.bench, f"one: {name}", f"two: {name}")
    assert all(value <= TOLERANCE for value in found.values()), found


def test_one_process_offloads_and_is_as_without(pairs: Pairs) -> None:
    found = differences(pairs.bench, "one", "alone")
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize(("start", "end"), MOVES)
def test_a_run_goes_on_under_another_engine(pairs: Pairs, start: str, end: str) -> None:
    assert_goes_on(pairs.bench, "one", f"{start} to {end}", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", AGAIN)
def test_shared_as_before_a_run_goes_on_bit_for_bit(pairs: Pairs, name: str) -> None:
    assert_goes_on(pairs.bench, name, f"{name} again", tolerance=0)


def test_the_files_are_those_of_one_process(pairs: Pairs) -> None:
    for folder in (".", "checkpoint-3"):
        one, two = (
            json.loads((pairs.bench.root / name / folder / "manifest.json").read_text())
            for name in ("one", "zero3")
        )
        plain, of_ranks = {"rng_state.pth"}, {"rng_state_0.pth", "rng_state_1.pth"}
        assert one["files"].keys() - plain == two["files"].keys() - of_ranks
        assert one.get("base") == two.get("base")
        shapes = [saved_shapes(pairs.bench.root / name / folder) for name in ("one", "zero3")]
        assert shapes[0] == shapes[1] != {}


@pytest.mark.parametrize("name", [name for name in AGAIN if "bfloat16" in name])
def test_in_bfloat16_the_loss_goes_down(pairs: Pairs, name: str) -> None:
    losses = [line["loss"] for line in pairs.bench.lines(name) if "loss" in line]
    assert losses[-1] < losses[0]
    assert {str(tensor.dtype) for tensor in pairs.bench.weights(name).values()} == {"torch.float32"}


@pytest.mark.slow  # its Adam is compiled first
def test_deepspeeds_own_adam_steps_and_goes_on_as_torchs(tmp_path: Path) -> None:
    bench = Bench.new(tmp_path)
    saving = {**SAVING, "num_epochs": 1, "weight_decay": 0.1}
    forced = {**zero(2, offload_optimizer=CPU), "zero_force_ds_cpu_optimizer": True}
    configs = {
        "one": {},
        "adam": {"deepspeed": forced},
        "adam to one": going_on(bench, "adam"),
        "one to adam": {"deepspeed": forced, **going_on(bench, "one")},
    }
    bench.train(1, [bench.config(name, **saving, **how) for name, how in configs.items()])
    found = differences(bench, "one", "adam")
    assert all(value <= TOLERANCE for value in found.values()), found
    for name in ("adam to one", "one to adam"):
        assert_goes_on(bench, "one", name, tolerance=TOLERANCE)
