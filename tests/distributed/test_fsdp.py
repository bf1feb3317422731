"""A model sharded over two processes trains as one process does, and is saved whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from launching import (
    Bench,
    assert_goes_on,
    differences,
    relative,
    run,
    torchrun,
    write_parity,
)
from newtune.config.load import load_config
from newtune.run import merge
from newtune.training.checkpoint import saved_shapes

pytestmark = pytest.mark.xdist_group("fsdp")  # they share two launches

WORKER = Path(__file__).with_name("worker.py")
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_dropout": 0,
}
QLORA = {**LORA, "adapter": "qlora"}
KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": LORA, "qlora": QLORA}
PACKED = {"sample_packing": True}
SHARD = {"reshard_after_forward": True}
OFFLOAD = {"offload_params": True, "auto_wrap_policy": "NO_WRAP"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full, padded, accumulation 1": ({"batch_size": 2}, SHARD),
    "full, packed, accumulation 4": ({**PACKED, "batch_size": 8}, {"sharding_strategy": 2}),
    "LoRA, padded, accumulation 4": (
        {**LORA, "batch_size": 8},
        {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 3000},
    ),
    "LoRA, packed, accumulation 1, recomputed": (
        {**LORA, **PACKED, "batch_size": 2},
        {"activation_checkpointing": True, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
    ),
    "QLoRA, packed, accumulation 1": ({**QLORA, **PACKED, "batch_size": 2}, SHARD),
    "full, tied embeddings, padded, accumulation 2": (
        {"batch_size": 4, "overrides_of_model_config": {"tie_word_embeddings": True}},
        SHARD,
    ),
    "full, packed, parameters on the CPU": ({**PACKED, "batch_size": 4}, OFFLOAD),
    "LoRA, answers, the best at the end": (
        {
            **LORA,
            "batch_size": 4,
            "eval_generate": True,
            "eval_max_new_tokens": 4,
            "load_best_model_at_end": True,
            "save_strategy": None,
        },
        SHARD,
    ),
}
TOLERANCE = 1e-5
SAVING: dict[str, Any] = {"batch_size": 4, "save_steps": 3, "save_strategy": None}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Train every case on one process and sharded over two, and each on from another's."""
    bench = Bench.new(tmp_path_factory.mktemp("fsdp"))
    alone, together = [], []
    for number, (case, fsdp) in enumerate(CASES.values()):
        alone.append(bench.config(f"one-{number}", **case))
        together.append(bench.config(f"two-{number}", **case, fsdp_config=fsdp))
    mixed = {**LORA, **PACKED, "bf16": True, "batch_size": 4}
    alone.append(bench.config("one-bf16", **mixed))
    policy = {"mixed_precision_policy": {"reduce_dtype": "fp32"}}
    together.append(bench.config("two-bf16", **mixed, fsdp_config=policy))
    for kind, changes in KINDS.items():
        saving = {**SAVING, **changes}
        alone.append(bench.config(f"one-{kind}", **saving))
        together.append(bench.config(f"two-{kind}", **saving, fsdp_config=SHARD))
        for start in ("one", "two"):
            checkpoint = str(bench.root / f"{start}-{kind}" / "checkpoint-3")
            again = {**saving, "resume_from_checkpoint": checkpoint}
            name = f"{start}-to-two-{kind}"
            together.append(bench.config(name, **again, fsdp_config=SHARD))
    run(torchrun(1, WORKER, *alone))
    run(torchrun(2, WORKER, *together))
    back = []
    for kind, changes in KINDS.items():
        checkpoint = str(bench.root / f"two-{kind}" / "checkpoint-3")
        again = {**SAVING, **changes, "resume_from_checkpoint": checkpoint}
        back.append(bench.config(f"two-to-one-{kind}", **again))
    run(torchrun(1, WORKER, *back))
    return bench


@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_share_a_model_are_one(bench: Bench, case: str) -> None:
    number = list(CASES).index(case)
    found = differences(bench, f"one-{number}", f"two-{number}")
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("move", ["one-to-two", "two-to-one"])
def test_a_run_goes_on_sharded_or_not(bench: Bench, kind: str, move: str) -> None:
    assert_goes_on(bench, f"one-{kind}", f"{move}-{kind}", tolerance=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_as_before_a_run_goes_on_bit_for_bit(bench: Bench, kind: str) -> None:
    assert_goes_on(bench, f"two-{kind}", f"two-to-two-{kind}", tolerance=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_those_of_one_process(bench: Bench, kind: str) -> None:
    for folder in (".", "checkpoint-3"):
        one, two = (
            json.loads((bench.root / f"{name}-{kind}" / folder / "manifest.json").read_text())
            for name in ("one", "two")
        )
        plain, of_ranks = {"rng_state.pth"}, {"rng_state_0.pth", "rng_state_1.pth"}
        assert one["files"].keys() - plain == two["files"].keys() - of_ranks
        assert one.get("base") == two.get("base")
        shapes = [saved_shapes(bench.root / f"{name}-{kind}" / folder) for name in ("one", "two")]
        assert shapes[0] == shapes[1] != {}


def test_an_adapter_trained_over_a_sharded_base_is_merged(bench: Bench) -> None:
    config = bench.config("two-qlora", **SAVING, **QLORA, fsdp_config=SHARD)
    merged = merge(load_config(config, []))  # refused unless it computes as the adapter does
    assert (merged.folder / "model.safetensors").is_file()


def test_in_bfloat16_the_loss_goes_down_alike(bench: Bench) -> None:
    one, two = bench.lines("one-bf16"), bench.lines("two-bf16")
    losses = [(a["loss"], b["loss"]) for a, b in zip(one, two, strict=True) if "loss" in a]
    assert losses[-1][0] < losses[0][0]
    assert all(relative(b, a) < 0.02 for a, b in losses), losses


def test_the_table_of_differences(bench: Bench) -> None:
    """With NEWTUNE_PARITY set to a file, the measured differences are written to it."""
    found = {
        f"FSDP2: {case}": differences(bench, f"one-{number}", f"two-{number}")
        for number, case in enumerate(CASES)
    }
    write_parity(found)
