"""How several processes work together, as the plan has it and as the Trainer gets it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from configs import valid
from newtune.distributed.world import World
from newtune.errors import ConfigError
from newtune.plan.fsdp import DONE_BY_FSDP2
from newtune.plan.ledger import Ledger
from newtune.plan.parallel import hang_timeout_of, plan_parallel
from newtune.plan.parts import QuantizationPlan
from newtune.plan.sharing import FsdpPlan, MeshPlan, ParallelPlan
from newtune.training.arguments import training_arguments
from runs import TinyRun

ONE = World(0, 1, "cpu", 0, bf16_is_fast=False)
TWO = dataclasses.replace(ONE, size=2)
GIVEN = {
    "ddp": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 77,
    "ddp_bucket_cap_mb": 3,
    "ddp_broadcast_buffers": False,
    "ddp_find_unused_parameters": True,
}


def test_given_options_reach_the_trainer(tmp_path: Path) -> None:
    plan = plan_parallel(valid(**GIVEN), TWO, Ledger())
    assert plan.backend == "gloo"
    # accelerate takes a backend only where there is a group: tests/distributed
    parallel = dataclasses.replace(plan, backend=None)
    arguments = training_arguments(
        TinyRun(tmp_path, training={"parallel": parallel}).plan(), tmp_path
    )
    for key, value in GIVEN.items():
        if key not in ("ddp", "ddp_backend"):
            assert getattr(arguments, key) == value


def test_nothing_given_is_plain_data_parallelism() -> None:
    assert plan_parallel(valid(), TWO, Ledger()) == ParallelPlan("ddp", MeshPlan(2))


@pytest.mark.parametrize("key", GIVEN)
def test_alone_each_option_is_answered(key: str) -> None:
    ledger = Ledger()
    assert plan_parallel(valid(**{key: GIVEN[key]}), ONE, ledger) == ParallelPlan()
    assert ledger.notices == (f"`{key}` has no effect in this run: it has one process.",)


@pytest.mark.parametrize(("given", "seconds"), [({}, 600), ({"hang_timeout_seconds": 0}, 0)])
def test_how_long_a_process_may_hang(given: dict[str, int], seconds: int) -> None:
    assert plan_parallel(valid(**given), TWO, Ledger()).hang_timeout_seconds == seconds
    assert hang_timeout_of(valid(**given)) == seconds
    ledger = Ledger()
    plan_parallel(valid(hang_timeout_seconds=9), ONE, ledger)
    assert ledger.notices == (
        "`hang_timeout_seconds` has no effect in this run: it has one process.",
    )


def test_one_process_says_why() -> None:
    ledger = Ledger()
    plan_parallel(valid(device_map="auto"), ONE, ledger)
    why = "one process: `device_map` spreads its layers over the devices"
    assert ledger.reasons["training.parallel"] == why


def test_processes_that_would_train_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 processes were started"):
        plan_parallel(valid(ddp=False), TWO, Ledger())


def planned(**fsdp: Any) -> FsdpPlan:
    plan = plan_parallel(valid(fsdp_config=fsdp), TWO, Ledger())
    assert plan.engine == "fsdp2"
    assert plan.fsdp is not None
    return plan.fsdp


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"reshard_after_forward": True}, {}),
        ({"reshard_after_forward": False}, {"reshard_after_forward": False}),
        ({"sharding_strategy": "SHARD_GRAD_OP"}, {"reshard_after_forward": False}),
        ({"sharding_strategy": 1}, {}),
        ({"offload_params": True, "cpu_offload_pin_memory": True}, {"offload": True}),
        ({"auto_wrap_policy": "NO_WRAP"}, {"wrap": "nothing"}),
        (
            {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 7},
            {"wrap": "size", "least_parameters": 7},
        ),
        ({"transformer_layer_cls_to_wrap": "A,B"}, {"layer_classes": ("A", "B")}),
        ({"transformer_layer_cls_to_wrap": ["A"]}, {"layer_classes": ("A",)}),
        ({"mixed_precision_policy": "bf16"}, {"dtypes": {"param_dtype": "bfloat16"}}),
        (
            {"mixed_precision_policy": {"reduce_dtype": "fp32"}},
            {"dtypes": {"reduce_dtype": "float32"}},
        ),
    ],
)
def test_fsdp_options(given: dict[str, Any], changed: dict[str, Any]) -> None:
    assert planned(**given) == dataclasses.replace(FsdpPlan(), **changed)


def test_pinned_memory_is_for_gpus() -> None:
    gpu = dataclasses.replace(TWO, device="cuda:0", visible_gpus=2)
    for pins, expected in ((None, True), (True, True), (False, False)):
        options = {"offload_params": True, "cpu_offload_pin_memory": pins}
        given = {key: value for key, value in options.items() if value is not None}
        plan = plan_parallel(valid(fsdp_config=given), gpu, Ledger())
        assert plan.fsdp is not None
        assert plan.fsdp.pin_memory is expected


def test_fsdp_recomputes_activations_where_asked() -> None:
    from newtune.plan.model import recomputes

    assert recomputes(valid(fsdp_config={"activation_checkpointing": True}))
    assert not recomputes(valid(fsdp_config={"activation_checkpointing": False}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp_config": {"sharding_strategy": "NO_SHARD"}}, "`NO_SHARD` shards nothing"),
        ({"fsdp_config": {"sharding_strategy": "FULL"}}, "no sharding strategy; known: FULL_SHARD"),
        ({"fsdp_config": {"mixed_precision_policy": "int8"}}, "got `param_dtype: int8`"),
        ({"fsdp": ["full_shard"], "optimizer": "adamw_8bit"}, "not known to work on sharded"),
    ],
)
def test_what_cannot_be_sharded_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_parallel(valid(**changes), TWO, Ledger())


def test_a_base_in_eight_bit_is_not_sharded() -> None:
    config = valid(fsdp_config={"offload_params": True})
    with pytest.raises(ConfigError, match="cannot shard a base in 8 bit"):
        plan_parallel(config, TWO, Ledger(), quantization=QuantizationPlan(8, {}))
    for method in ("gptq", "awq", "torchao"):
        packed = QuantizationPlan(4, {}, stored=True, method=method)
        with pytest.raises(ConfigError, match=f"packed layers of a base by {method}"):
            plan_parallel(config, TWO, Ledger(), quantization=packed)


@pytest.mark.parametrize(
    ("storage", "computed", "refused"),
    [
        (None, "bf16", False),
        ("bfloat16", "bf16", False),
        ("float32", None, False),
        ("float32", "bf16", True),
    ],
)
def test_packed_bits_are_not_rounded(
    storage: str | None, computed: str | None, refused: bool
) -> None:
    config = valid(fsdp_config={"offload_params": True, "mixed_precision_policy": computed})
    base = QuantizationPlan(4, {"bnb_4bit_quant_storage": storage} if storage else {})
    if not refused:
        assert plan_parallel(config, TWO, Ledger(), quantization=base).engine == "fsdp2"
        return
    with pytest.raises(ConfigError, match="would be rounded to bfloat16"):
        plan_parallel(config, TWO, Ledger(), quantization=base)


@pytest.mark.parametrize(
    "key",
    [
        *("limit_all_gathers", "use_orig_params", "sync_module_states"),
        *("backward_prefetch", "forward_prefetch"),
    ],
)
def test_what_fsdp2_does_by_itself_is_answered(key: str) -> None:
    ledger = Ledger()
    value: Any = "BACKWARD_PRE" if key == "backward_prefetch" else True
    plan_parallel(valid(fsdp_config={key: value}), TWO, ledger)
    said = f"`fsdp_config.{key}` has no effect in this run: {DONE_BY_FSDP2[key]}."
    assert said in ledger.notices


@pytest.mark.parametrize(
    ("form", "in_parts"), [("FULL_STATE_DICT", False), ("SHARDED_STATE_DICT", True)]
)
def test_checkpoints_are_whole_or_in_parts(form: str, in_parts: bool) -> None:
    plan = plan_parallel(valid(fsdp_config={"state_dict_type": form}), TWO, Ledger())
    assert plan.fsdp is not None
    assert plan.fsdp.writes_parts is in_parts


@pytest.mark.parametrize(
    ("given", "base", "obstacle"),
    [
        ({}, None, None),
        ({}, QuantizationPlan(4, {}), "a quantised base's statistics are not handed out"),
    ],
)
def test_only_the_first_process_reads_the_weights(
    given: dict[str, Any], base: QuantizationPlan | None, obstacle: str | None
) -> None:
    ledger = Ledger()
    config = valid(fsdp_config={"cpu_ram_efficient_loading": True}, **given)
    plan = plan_parallel(config, TWO, ledger, quantization=base)
    assert plan.fsdp is not None
    assert plan.fsdp.loads_once is (obstacle is None)
    said = f"`fsdp_config.cpu_ram_efficient_loading` has no effect in this run: {obstacle}."
    assert any(said in text for text in ledger.notices) is (obstacle is not None)


def test_a_result_is_whole() -> None:
    ledger = Ledger()
    plan_parallel(valid(fsdp_config={"final_state_dict_type": "SHARDED_STATE_DICT"}), TWO, ledger)
    said = "`fsdp_config.final_state_dict_type` runs as FULL_STATE_DICT: a result is an ordinary "
    assert f"{said}model or adapter." in ledger.notices


def test_one_process_shards_nothing() -> None:
    ledger = Ledger()
    assert plan_parallel(valid(fsdp=["full_shard"]), ONE, ledger) == ParallelPlan()
    said = "`fsdp_config` has no effect in this run: one process shares nothing."
    assert said in ledger.notices
