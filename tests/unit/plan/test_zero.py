"""DeepSpeed's configuration: found, compared with the rest of the run, and filled."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from configs import valid
from newtune.config import deepspeed_file
from newtune.config.deepspeed_file import KNOWN, read_deepspeed, shipped
from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.plan.ledger import Ledger
from newtune.plan.parts import PrecisionPlan, QuantizationPlan
from newtune.plan.sharing import ParallelPlan
from newtune.plan.zero import Known, asks_for_bf16, plan_zero, zero_precision
from runs import TinyRun

TWO = World(0, 2, "cpu", 0, bf16_is_fast=False)
FULL = PrecisionPlan("float32", "float32", None, None)
BF16 = PrecisionPlan("bfloat16", "bfloat16", None, None)


def known(tmp_path: Path, precision: PrecisionPlan = FULL, **optimizer: Any) -> Known:
    plan = TinyRun(tmp_path, accumulation=4, optimizer=optimizer).plan()
    training = plan.training
    return Known(training.steps, training.optimizer, training.schedule, precision, plan.model_facts)


def planned(given: Any, rest: Known, world: World = TWO, **keys: Any) -> ParallelPlan:
    config = valid(deepspeed=given, **keys)
    return plan_zero(config, read_deepspeed(given, Path()), rest, world, Ledger())


def stage(number: int, **options: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": number, **options}}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_file_is_filled_without_a_rest(tmp_path: Path, name: str) -> None:
    given = read_deepspeed(f"deepspeed_configs/{name}", tmp_path)
    rest = known(tmp_path, BF16 if asks_for_bf16(given) else FULL)
    plan = planned(given, rest).zero
    assert plan is not None
    assert plan.stage == int(name.removeprefix("zero")[0])
    assert "auto" not in json.dumps(plan.config)
    assert plan.config["gradient_accumulation_steps"] == rest.steps.accumulation
    assert plan.config["train_batch_size"] == rest.steps.rows_per_step
    assert plan.config["gradient_clipping"] == rest.optimizer.max_grad_norm
    assert plan.dtype == ("bfloat16" if "bf16" in name else None)
    assert plan.offloads_parameters == ("params" in name or "all" in name)


def test_a_path_is_beside_the_configuration_then_here_then_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for place, number in ((here, 2), (beside, 1)):
        place.mkdir()
        (place / "zero3.json").write_text(json.dumps(stage(number)))
    monkeypatch.chdir(here)

    def found(name: str, folder: Path) -> int:
        return int(read_deepspeed(name, folder)["zero_optimization"]["stage"])

    assert found("zero3.json", beside) == 1
    assert found("zero3.json", tmp_path) == 2
    assert found("deepspeed_configs/zero3.json", beside) == 3
    assert found("./deepspeed_configs/zero3", beside) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("deepspeed_configs/zero33.json", "Did you mean `deepspeed_configs/zero3.json`"),
        ("mine/zero3.json", "there is no `mine/zero3.json`"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean `zero_optimization`"),
        (stage(2, overlap_com=True), "did you mean `overlap_comm`"),
        (stage(3, offload_param={"devise": "cpu"}), "did you mean `device`"),
        ({**stage(2), "activation_checkpointing": {"partition": 1}}, "gradient_checkpointing"),
        ({**stage(2), "wandb": {"enabled": True}}, "newtune reports the run itself"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_deepspeed(given, tmp_path)
    assert message in str(caught.value)


def test_a_section_that_is_switched_off_asks_for_nothing(tmp_path: Path) -> None:
    assert read_deepspeed({**stage(2), "wandb": {"enabled": False}}, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**stage(2), "gradient_accumulation_steps": 2}, "is 2, but the run's is 4"),
        ({**stage(2), "train_batch_size": 7}, "train_batch_size: is 7"),
        ({**stage(2), "gradient_clipping": 0.5}, "gradient_clipping: is 0.5"),
        ({**stage(2), "bf16": {"enabled": True}}, "bf16.enabled: is True, but the run's is False"),
        ({**stage(2), "fp16": {"enabled": True}}, "fp16.enabled: is True"),
        ({**stage(2), "optimizer": {"type": "Lamb"}}, "is Lamb, but `optimizer` is adamw_torch"),
        ({**stage(2), "optimizer": {"type": "AdamW", "params": {"lr": 5}}}, "optimizer.params.lr"),
        ({**stage(2), "optimizer": {"type": "AdamW", "params": {"x": 5}}}, "is not passed on"),
        ({**stage(2), "scheduler": {"type": "WarmupDecayLR"}}, "`lr_scheduler` is constant"),
        (stage(0), "stage: is 0, but ZeRO shares something from stage 1 on"),
        (stage(2, offload_param={"device": "cpu"}), "offload_param: needs `stage: 3`"),
        (stage(3, offload_param={"device": "nvme"}), "newtune offloads to the CPU"),
        (stage(3, sub_group_size="auto"), "sub_group_size: `auto` cannot be filled"),
        ({}, "zero_optimization.stage: is missing"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(given, known(tmp_path))
    assert message in str(caught.value)


@pytest.mark.parametrize(("number", "bits", "shared"), [(3, 8, False), (3, 4, True), (2, 8, True)])
def test_a_base_in_eight_bit_is_not_taken_apart(
    tmp_path: Path, number: int, bits: int, shared: bool
) -> None:
    quantization = QuantizationPlan(bits, {})
    rest = dataclasses.replace(known(tmp_path), quantization=quantization)
    if shared:
        assert planned(stage(number), rest).zero
        return
    with pytest.raises(ConfigError, match="cannot share a base in 8 bit"):
        planned(stage(number), rest)


@pytest.mark.parametrize("name", ["adafactor", "adamw_8bit", "muon"])
def test_optimizers_that_look_across_a_tensor_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` is not known to work with DeepSpeed"):
        planned(stage(2), known(tmp_path, name=name))


def test_optimizer_and_schedule_that_agree_are_newtunes(tmp_path: Path) -> None:
    rest = known(tmp_path)
    schedule = dataclasses.replace(rest.schedule, name="linear", warmup_steps=3)
    rest = dataclasses.replace(rest, schedule=schedule)
    params = {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": "auto"}
    decay = {"warmup_num_steps": 3, "warmup_max_lr": "auto", "total_num_steps": "auto"}
    given = {
        **stage(2),
        "optimizer": {"type": "AdamW", "params": params},
        "scheduler": {"type": "WarmupDecayLR", "params": decay},
    }
    plan = planned(given, rest).zero
    assert plan is not None
    assert not {"optimizer", "scheduler"} & plan.config.keys()


@pytest.mark.parametrize(
    ("device", "forced", "expected"),
    [("cpu", None, False), ("cpu", True, True), ("cuda:0", None, True), ("cuda:0", False, False)],
)
def test_whose_adam_steps_on_the_cpu(
    tmp_path: Path, device: str, forced: bool | None, expected: bool
) -> None:
    given = stage(2, offload_optimizer={"device": "cpu", "pin_memory": True})
    if forced is not None:
        given["zero_force_ds_cpu_optimizer"] = forced
    world = dataclasses.replace(TWO, device=device)
    plan = planned(given, known(tmp_path), world).zero
    assert plan is not None
    assert plan.cpu_adam is plan.config["zero_force_ds_cpu_optimizer"] is expected
    pinned = plan.config["zero_optimization"]["offload_optimizer"]["pin_memory"]
    assert pinned is (device != "cpu")


def test_in_bfloat16_the_masters_are_the_optimizers() -> None:
    mixed = PrecisionPlan("bfloat16", "float32", "bfloat16", None)
    found = zero_precision(mixed)
    assert found is not None
    assert found[0] == BF16
    assert zero_precision(FULL) is None


def test_the_known_keys_are_those_of_the_installed_deepspeed() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero import config, offload_config

    models = {
        "zero_optimization": config.DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
    }
    for section, model in models.items():
        names = {field.alias or name for name, field in model.model_fields.items()}
        assert set(KNOWN[section]) == names, section
    assert not set(deepspeed_file.PASSED_ON) & set(deepspeed_file.NOT_HERE)
