"""Every precision key on every kind of device."""

import pytest

from newtune.errors import ConfigError
from newtune.plan.precision import resolve_precision

GIVEN = dict.fromkeys(("bf16", "fp16", "bfloat16", "float16", "float32", "tf32"))


def precision(*, device="cpu", fast=True, **keys):
    plan, _ = resolve_precision(**{**GIVEN, **keys}, device=device, bf16_is_fast=fast)
    return plan.frozen_weights, plan.trained_weights, plan.autocast


MIXED = ("bfloat16", "float32", "bfloat16")
FULL = ("float32", "float32", None)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, MIXED),
        ({"bf16": "auto"}, MIXED),
        ({"bf16": "auto", "fast": False}, FULL),
        ({"bf16": "auto", "fast": False, "device": "cuda:0"}, ("float16", "float32", "float16")),
        ({"bf16": True, "fast": False}, MIXED),
        ({"bf16": False}, FULL),
        ({"float32": True}, FULL),
        ({"bfloat16": True}, ("bfloat16", "bfloat16", None)),
        ({"fp16": True, "device": "cuda:0"}, ("float16", "float32", "float16")),
        ({"float16": True, "device": "cuda:0"}, ("float16", "float16", None)),
    ],
)
def test_precision(keys, expected):
    assert precision(**keys) == expected


@pytest.mark.parametrize("key", ["fp16", "float16"])
def test_half_precision_on_a_cpu_is_refused(key):
    with pytest.raises(ConfigError, match=f"{key}: needs a GPU"):
        precision(**{key: True})


def test_bf16_on_a_gpu_without_it_is_refused():
    with pytest.raises(ConfigError, match="Ampere"):
        precision(bf16=True, fast=False, device="cuda:0")


def test_tf32_reaches_the_plan_on_a_gpu_only():
    on_gpu, _ = resolve_precision(**{**GIVEN, "tf32": True}, device="cuda:0", bf16_is_fast=True)
    on_cpu, _ = resolve_precision(**{**GIVEN, "tf32": True}, device="cpu", bf16_is_fast=True)
    assert (on_gpu.tf32, on_cpu.tf32) == (True, None)
