"""A model sharded over two processes trains as one process does, and is saved whole or in parts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from launching import (
    LORA,
    PACKED,
    QLORA,
    SAVING,
    TOLERANCE,
    Bench,
    Pairs,
    assert_goes_on,
    matrix,
    measures_all,
    relative,
)
from newtune.config.load import load_config
from newtune.errors import ExportError
from newtune.outputs.consolidate import consolidate, sharded_checkpoint
from newtune.results import merge
from newtune.training.checkpoint import saved_shapes
from tiny import save_tiny_checkpoint

pytestmark = pytest.mark.xdist_group("fsdp")  # they share their launches

KINDS: dict[str, dict[str, Any]] = {"full": {}, "qlora": QLORA}
MOVES = {"full": ("one", "parts"), "qlora": ("two",)}
"""From whose checkpoint a run goes on over two processes."""
BACK = ("two", "parts")
"""From whose checkpoint a full one goes on alone."""
SHARD = {"reshard_after_forward": True}
OFFLOAD = {"offload_params": True, "auto_wrap_policy": "NO_WRAP"}
PARTS = {"state_dict_type": "SHARDED_STATE_DICT"}
ONCE = {"cpu_ram_efficient_loading": True}
READ_ONCE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full, tied embeddings, kept gathered": (PACKED, {"sharding_strategy": 2}),
    "LoRA, new tokens": ({**LORA, "special_tokens": {"pad_token": "<|padding|>"}}, SHARD),
}
ENGINES = {"FSDP2": SHARD, "FSDP2, all on the CPU": OFFLOAD}
ALL = matrix("full", "LoRA", "QLoRA")
FEW = {
    "full, padded, accumulation 4, a short last step": ["FSDP2"],
    "QLoRA, packed, accumulation 1": ["FSDP2, all on the CPU"],
}
RARE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LoRA, by size": (
        {**LORA, "batch_size": 8},
        {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 3000},
    ),
    "LoRA, recomputed": (
        {**LORA, **PACKED, "batch_size": 2},
        {"activation_checkpointing": True, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
    ),
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LoRA, answers, the best at the end": (
        {
            **LORA,
            "batch_size": 4,
            "eval_generate": True,
            "eval_max_new_tokens": 4,
            "load_best_model_at_end": True,
            "save_strategy": None,
        },
        {**SHARD, **PARTS},
    ),
}
SHORT = {"num_epochs": 1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Train every case on one process and sharded over two, and each on from another's."""
    bench = Bench.new(tmp_path_factory.mktemp("fsdp"))
    pairs = Pairs(bench)
    for case, values in ALL.items():
        for engine, options in ENGINES.items():
            if measures_all() or engine in FEW.get(case, ()):
                pairs.compare(engine, case, {**SHORT, **values}, fsdp_config=options)
    for case, (values, options) in {**CASES, **(RARE if measures_all() else {})}.items():
        pairs.compare("FSDP2", case, {**SHORT, **values}, fsdp_config=options)
    put_weights_apart(bench)
    for case, (values, options) in READ_ONCE.items():
        read = {**SHORT, **values, "batch_size": 4, "base_model": "./base"}
        pairs.compare("FSDP2, read once", case, read, fsdp_config={**options, **ONCE})
    if measures_all():
        mixed = {**LORA, **PACKED, **SHORT, "bf16": True, "batch_size": 4}
        policy = {"mixed_precision_policy": {"reduce_dtype": "fp32"}}
        pairs.alone("one-bf16", **mixed)
        pairs.together("two-bf16", **mixed, fsdp_config=policy)
    for kind, values in KINDS.items():
        saving = {**SAVING, **SHORT, **values}
        pairs.alone(f"one-{kind}", **saving)
        pairs.together(f"two-{kind}", **saving, fsdp_config=SHARD)
        pairs.together(f"parts-{kind}", **saving, fsdp_config={**SHARD, **PARTS})
        for start in MOVES[kind]:
            on = {**saving, "resume_from_checkpoint": bench.checkpoint(f"{start}-{kind}")}
            pairs.together(f"{start}-to-two-{kind}", **on, fsdp_config=SHARD)
    pairs.train()
    for start in BACK:
        on = {"resume_from_checkpoint": bench.checkpoint(f"{start}-full")}
        pairs.alone(f"{start}-to-one-full", **SAVING, **SHORT, **on)
    pairs.train()
    return pairs


def put_weights_apart(bench: Bench) -> None:
    """Give each process a folder with the base of its own; that of the second has no weights."""
    for rank in (0, 1):
        save_tiny_checkpoint(bench.root / f"process-{rank}" / "base", tie_word_embeddings=True)
    (bench.root / "process-1" / "base" / "model.safetensors").unlink()


def test_the_table_of_differences(pairs: Pairs) -> None:
    """Two processes that share a model are one; `make parity` writes how far they differ."""
    pairs.write_parity()


@pytest.mark.parametrize("move", ["one-to-two", "two-to-one", "parts-to-one"])
def test_a_run_goes_on_sharded_or_not(pairs: Pairs, move: str) -> None:
    assert_goes_on(pairs.bench, "one-full", f"{move}-full", tolerance=TOLERANCE)


@pytest.mark.parametrize("move", ["parts-to-two-full", "two-to-two-qlora"])
def test_sharded_as_before_a_run_goes_on_bit_for_bit(pairs: Pairs, move: str) -> None:
    assert_goes_on(pairs.bench, f"two-{move.rsplit('-', 1)[1]}", move, tolerance=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_those_of_one_process(pairs: Pairs, kind: str) -> None:
    for folder in (".", "checkpoint-3"):
        one, two = (
            json.loads((pairs.bench.root / f"{name}-{kind}" / folder / "manifest.json").read_text())
            for name in ("one", "two")
        )
        plain, of_ranks = {"rng_state.pth"}, {"rng_state_0.pth", "rng_state_1.pth"}
        assert one["files"].keys() - plain == two["files"].keys() - of_ranks
        assert one.get("base") == two.get("base")
        shapes = [
            saved_shapes(pairs.bench.root / f"{name}-{kind}" / folder) for name in ("one", "two")
        ]
        assert shapes[0] == shapes[1] != {}


@pytest.mark.parametrize("kind", KINDS)
def test_in_parts_no_file_holds_the_whole(pairs: Pairs, kind: str) -> None:
    whole, parts = (pairs.bench.root / f"{name}-{kind}/checkpoint-3" for name in ("two", "parts"))
    manifest = json.loads((parts / "manifest.json").read_text())
    written = {name for name in manifest["files"] if name.startswith("sharded/")}
    assert written == {"sharded/.metadata", "sharded/__0_0.distcp", "sharded/__1_0.distcp"}
    assert not list(parts.glob("*.safetensors"))
    assert not (parts / "optimizer.pt").exists()
    assert {path.name for path in whole.glob("*.json")} - {"manifest.json"} <= {
        path.name for path in parts.iterdir()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_put_together(pairs: Pairs, kind: str, tmp_path: Path) -> None:
    root = pairs.bench.root
    done = consolidate(sharded_checkpoint(root / f"parts-{kind}"), tmp_path, most_bytes=50_000)
    whole = root / f"two-{kind}" / done.source.name  # the same run
    assert saved_shapes(tmp_path) == saved_shapes(whole)
    ours, theirs = (
        {
            name: value
            for path in folder.glob("*.safetensors")
            for name, value in load_file(path).items()
        }
        for folder in (tmp_path, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert done.manifest.files.keys() == {path.name for path in tmp_path.iterdir()} - {
        "manifest.json"
    }
    if kind == "full":
        assert len(list(tmp_path.glob("*.safetensors"))) > 1  # one file's tensors at a time
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert sum(value.numel() for value in model.parameters()) == done.manifest.parameters


def test_what_is_whole_already_is_said(pairs: Pairs) -> None:
    with pytest.raises(ExportError, match="its weights are whole already"):
        sharded_checkpoint(pairs.bench.root / "two-full")


def test_an_adapter_trained_over_a_sharded_base_is_merged(pairs: Pairs) -> None:
    config = pairs.bench.config("two-qlora", **SAVING, **SHORT, **QLORA, fsdp_config=SHARD)
    merged = merge(load_config(config, []))  # refused unless it computes as the adapter does
    assert (merged.folder / "model.safetensors").is_file()


@pytest.mark.skipif(not measures_all(), reason="a part of `make parity`")
def test_in_bfloat16_the_loss_goes_down_alike(pairs: Pairs) -> None:
    one, two = pairs.bench.lines("one-bf16"), pairs.bench.lines("two-bf16")
    losses = [(a["loss"], b["loss"]) for a, b in zip(one, two, strict=True) if "loss" in a]
    assert losses[-1][0] < losses[0][0]
    assert all(relative(b, a) < 0.02 for a, b in losses), losses
