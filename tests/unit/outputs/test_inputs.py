"""A run goes on only with the base and the data that it began with."""

import dataclasses
import logging

import pytest

from newtune.errors import DataError, ModelError
from newtune.outputs.inputs import Inputs, keep_inputs, require_same_inputs

BEGUN = Inputs(base="a1", base_dtype="float32", data="d1")


def test_the_same_goes_on_and_so_does_a_run_that_kept_nothing(tmp_path):
    require_same_inputs(tmp_path, BEGUN, source="base")
    keep_inputs(tmp_path, BEGUN)
    require_same_inputs(tmp_path, BEGUN, source="base")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"base": "a2"}, ModelError, "`base`: its weights are not those.*revision_of_model"),
        ({"data": "d2"}, DataError, "prepared data are not those.*`revision` of the dataset"),
    ],
)
def test_others_are_refused_and_the_way_out_is_told(tmp_path, change, error, said):
    keep_inputs(tmp_path, BEGUN)
    with pytest.raises(error, match=f"{said}.*remove {tmp_path}/inputs.json"):
        require_same_inputs(tmp_path, dataclasses.replace(BEGUN, **change), source="base")


def test_weights_in_another_precision_cannot_be_compared(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    keep_inputs(tmp_path, BEGUN)
    now = dataclasses.replace(BEGUN, base="a2", base_dtype="bfloat16")
    require_same_inputs(tmp_path, now, source="base")
    assert "float32 and goes on with it in bfloat16" in caplog.text
