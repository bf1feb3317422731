"""Eight processes train as one does, under each engine and under products of two and of three."""

from typing import Any

import pytest

from launching import LORA, PACKED, Bench, Pairs

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("eight")]

CASES: dict[str, dict[str, Any]] = {
    "full, padded, a short last step": {"batch_size": 8},
    "LoRA, packed, accumulation 2": {**LORA, **PACKED, "batch_size": 16},
}
ZERO3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "DDP 8": {},
    "FSDP2 8": {"dp_shard_size": 8},
    "HSDP 2 × 4": {"dp_replicate_size": 2, "dp_shard_size": 4},
    "ZeRO-3 8": {"deepspeed": ZERO3},
    "FSDP2 4 × TP 2": {"dp_shard_size": 4, "tensor_parallel_size": 2},
    "HSDP 2 × 2 × CP 2": {
        "dp_replicate_size": 2,
        "dp_shard_size": 2,
        "context_parallel_size": 2,
    },
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Train every case on one process and, in every layout, on eight."""
    bench = Bench.new(tmp_path_factory.mktemp("eight"), rows=43)
    pairs = Pairs(bench, processes=8)
    for layout, sharing in LAYOUTS.items():
        for case, values in CASES.items():
            pairs.compare(layout, case, {**values, "num_epochs": 2}, **sharing)
    pairs.train()
    return pairs


def test_the_table_of_differences(pairs: Pairs) -> None:
    """Eight processes are one; `make parity` writes how far they differ."""
    pairs.write_parity()
