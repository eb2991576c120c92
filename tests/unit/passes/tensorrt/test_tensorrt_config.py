"""Configs of the pass: contradictions and fields without effect are errors."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from passes.tensorrt.config import TensorRTConfig

SAMPLES = {"data": "some"}


def parse(fields):
    return TensorRTConfig.model_validate_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "fp16"}, "FP16 requires samples"),
        ({"precision": "int8"}, "FP16 requires samples"),
        ({"precision": "fp32", "floats": "fp16"}, "`floats: fp16` contradicts `precision: fp32`"),
        ({"precision": "fp32", "targets": ["sm86", "sm86"]}, "names sm86 more than once"),
        ({"precision": "fp32", "targets": ["8.6"]}, "String should match pattern"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        parse(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"precision": "fp16", "calibration": SAMPLES, "block_size": 32},
            "`block_size` has no effect with `precision: fp16`",
        ),
        (
            {"precision": "int8", "floats": "fp32", "data_max": 100.0},
            "`data_max` has no effect with FP32 computations",
        ),
        (
            {"precision": "fp32", "backend": "rtx", "on_missing_gpu": "bundle"},
            "`on_missing_gpu` has no effect with `backend: rtx`, which needs no GPU",
        ),
    ],
)
def test_a_field_without_effect_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        parse(fields)


def test_all_problems_are_named_at_once():
    with pytest.raises(ValidationError) as caught:
        parse({"precision": "fp32", "targets": ["sm86"] * 2, "block_size": 16, "highest": 1.0})
    for part in ("`targets` names sm86", "`block_size` has no effect", "`data_max` has no effect"):
        assert part in str(caught.value)


def test_the_former_name_of_data_max_is_accepted():
    config = parse({"precision": "fp16", "calibration": SAMPLES, "highest": 4.0})
    assert config.data_max == 4.0


def test_importing_the_step_imports_no_heavy_library():
    code = (
        "import sys, passes.tensorrt.step\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
