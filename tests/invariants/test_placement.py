"""A model whose layers lie in different places computes what it does in one place."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file
from torch import nn

from newtune.config.load import load_config
from newtune.errors import ConfigError
from newtune.model.generate import generate_greedy
from newtune.results import evaluate, load_for_inference, merge
from newtune.run import train
from runs import TinyRun, assert_same, weights
from tiny import save_tiny_checkpoint

SPREAD = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def settings(root: Path, base: Path, out: str, **further: Any) -> list[str]:
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} {n}"} for n in range(12)]
    (root / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    values: dict[str, Any] = {
        "base_model": str(base),
        "datasets": [{"path": str(root / "rows.jsonl"), "type": "alpaca"}],
        "val_set_size": 4,
        "sequence_len": 160,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 0.01,
        "bf16": False,
        "save_strategy": "no",
        "output_dir": str(root / out),
        "dataset_prepared_path": str(root / "prepared"),
        **further,
    }
    file = root / f"{out}.yaml"
    file.write_text(json.dumps(values))
    return [str(file)]


class Runs:
    """A base, and runs over it that are made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = save_tiny_checkpoint(root / "base")

    def config(self, out: str, **keys: Any) -> Any:
        adapter = {"adapter": "lora", "lora_target_linear": True} if out == "lora" else {}
        (file,) = settings(self.root, self.base, out, **adapter, **keys)
        return load_config(Path(file), [])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("placed"))
    for kind in ("lora", "full"):
        train(made.config(kind))
    return made


def answers(loaded: Any) -> list[list[int]]:
    prompts = [[5, 9, 40], [4, 300, 20, 11]]
    return generate_greedy(
        loaded.model, loaded.tokenizer, prompts, max_new_tokens=6, batch_size=2, stop_ids=[]
    )


@pytest.mark.parametrize(
    ("kind", "which"), [("lora", "base"), ("lora", "adapter"), ("full", "model")]
)
def test_evaluation_and_answers_over_cpu_and_disk_are_those_in_memory(
    runs: Runs, kind: str, which: Any
) -> None:
    placed = runs.config(kind, device_map=SPREAD)
    expected = evaluate(runs.config(kind), which=which).scores
    got = evaluate(placed, which=which).scores
    assert got["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
    loaded = load_for_inference(placed, which=which)
    fetched = [p for p in loaded.model.parameters() if p.is_meta]
    assert fetched
    assert answers(loaded) == answers(load_for_inference(runs.config(kind), which=which))


def test_a_limit_of_memory_sends_to_the_disk_what_does_not_fit(runs: Runs) -> None:
    limited = runs.config("lora", device_map="auto", max_memory={"cpu": "120KB"})
    loaded = load_for_inference(limited, which="base")
    assert {p.is_meta for p in loaded.model.parameters()} == {True, False}
    assert answers(loaded) == answers(load_for_inference(runs.config("lora"), which="base"))


def test_merging_over_cpu_and_disk_writes_the_same_weights_and_proves_them(runs: Runs) -> None:
    here = merge(runs.config("lora"), overwrite=True)
    expected = (here.folder / "model.safetensors").read_bytes()
    placed = merge(runs.config("lora", device_map=SPREAD), overwrite=True)
    assert placed.report.passed
    assert (placed.folder / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_with_a_layer_on_the_disk_is_refused_before_weights_load(
    runs: Runs, kind: str
) -> None:
    with pytest.raises(ConfigError, match=r"on the disk.*gradients cannot flow back"):
        train(runs.config(kind, device_map=SPREAD, output_dir=str(runs.root / "never")))
    assert not (runs.root / "never").exists()


def test_without_a_gpu_a_strategy_is_answered_by_a_notice(runs: Runs) -> None:
    from newtune.prepare import prepare

    plan = prepare(runs.config("full", device_map="balanced", gpu_memory_limit="20GiB")).plan
    assert plan.model.placement is None
    assert any("no GPU is visible" in notice for notice in plan.notices)


def dispatched(model: Any, devices: Mapping[str, Any]) -> Any:
    """Spread a model as several GPUs would have it: every module brings its inputs to itself."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.hf_device_map = dict(devices)
    dispatch_model(inner, dict(devices), force_hooks=True)
    inner.hf_device_map = {name: number % 2 for number, name in enumerate(devices)}
    return model


@pytest.mark.parametrize("lora", [False, True])
def test_training_through_the_hooks_of_a_spread_model_gives_the_same_weights(
    tmp_path: Path, lora: bool
) -> None:
    """One device stands for several: what is tested is the path, not the copies between GPUs."""
    plain = TinyRun(tmp_path / "plain", accumulation=2, lora=lora)
    alone = plain.trainer()
    alone.train()
    spread = TinyRun(tmp_path / "spread", accumulation=2, lora=lora)
    places = dict.fromkeys(SPREAD, "cpu")
    trainer = spread.trainer(dispatched(spread.model(), places))
    assert any("_hf_hook" in vars(module) for module in trainer.network.modules())
    trainer.train()
    assert_same(weights(alone.network), weights(trainer.network))


@pytest.mark.parametrize(
    "changes",
    [{"lora": True}, {}, {"unfrozen": ("^model.embed_tokens.weight$[:200]", "lm_head")}],
    ids=["lora", "full", "rows"],
)
def test_a_spread_model_goes_on_from_a_checkpoint_bit_for_bit(
    tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    settings = {"dropout": 0.2, "accumulation": 2, "optimizer": {"weight_decay": 0.1}, **changes}
    plain = TinyRun(tmp_path / "plain", **settings)
    alone = plain.trainer()
    alone.train()
    saved = TinyRun(tmp_path / "saved", **settings, save={"at_steps": frozenset({2})})
    places = dict.fromkeys(SPREAD, "cpu")
    saved.trainer(dispatched(saved.model(), places)).train()
    for model in (dispatched(saved.model(), places), saved.model()):  # and on one device
        resumed = saved.trainer(model)
        resumed.train(saved.root / "checkpoint-2")
        assert_same(weights(resumed.network), weights(alone.network))


def test_a_resumed_run_merges_over_cpu_and_disk_as_in_memory(runs: Runs) -> None:
    keys = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(runs.root / "resumed")}
    train(runs.config("lora", **keys))
    whole = (runs.root / "resumed" / "adapter_model.safetensors").read_bytes()
    train(
        runs.config("lora", **keys, resume_from_checkpoint=str(runs.root / "resumed/checkpoint-1"))
    )
    assert (runs.root / "resumed" / "adapter_model.safetensors").read_bytes() == whole
    here = merge(runs.config("lora", **keys))
    expected = (here.folder / "model.safetensors").read_bytes()
    placed = merge(runs.config("lora", **keys, device_map=SPREAD), overwrite=True)
    assert placed.report.passed
    assert (placed.folder / "model.safetensors").read_bytes() == expected


@pytest.mark.multi_gpu
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_over_two_gpus_a_run_goes_on_and_merges_as_on_one(tmp_path: Path, kind: str) -> None:
    made = Runs(tmp_path)
    found = []
    for name, devices in (("one", None), ("two", "balanced")):
        out = tmp_path / name
        saving = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(out)}
        keys = saving | ({"device_map": devices} if devices else {})
        train(made.config(kind, **keys))
        file = out / ("adapter_model.safetensors" if kind == "lora" else "model.safetensors")
        whole = load_file(file)
        train(made.config(kind, **keys, resume_from_checkpoint=str(out / "checkpoint-1")))
        assert_same(load_file(file), whole)
        found.append(load_file(file))
        if kind == "lora":
            assert merge(made.config(kind, **keys)).report.passed
    assert_same(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.multi_gpu
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("device_map", ["balanced", {**SPREAD, "model.layers.1": 1}])
def test_training_over_two_gpus_gives_the_losses_of_one(
    tmp_path: Path, kind: str, device_map: Any
) -> None:
    made = Runs(tmp_path)
    if isinstance(device_map, Mapping):
        device_map = {name: int(name >= "model.layers.1") for name in device_map}
        device_map["lm_head"] = 1
    losses = []
    for name, keys in (("one", {}), ("two", {"device_map": device_map})):
        train(made.config(kind, output_dir=str(tmp_path / name), save_steps=1, **keys))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line).get("loss") for line in lines]
        losses.append([loss for loss in found if loss is not None])
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(*losses, strict=True))


def test_a_module_put_in_anothers_place_takes_over_what_brings_its_inputs() -> None:
    from newtune.model.placement import replace_module

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    dispatch_model(model, {"0": "cpu", "1": "cpu"}, force_hooks=True)
    replace_module(model, "1", nn.Linear(2, 2))
    assert "_hf_hook" in vars(model[1])
    assert model(torch.zeros(1, 2)).shape == (1, 2)


def test_the_lab_of_full_fine_tuning_over_gpus_runs_here_on_the_cpu(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    (given,) = settings(runs.root, runs.base, "lab", bf16=False)
    keys = json.loads(Path(given).read_text())
    lab = load_config(Path(__file__).parents[2] / "recipes" / "fft_mp.yaml", keys)
    report = train(lab)
    assert report is not None
    assert (runs.root / "lab" / "model.safetensors").is_file()
    plan = json.loads((runs.root / "lab" / "plan.json").read_text())
    assert plan["model"]["placement"] is None
    assert "no GPU is visible, so that all of it is on the CPU; nothing is spread" in str(plan)
