"""Tests of the source `random`: inputs of a graph, and what may not be measured on them."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calibration.sources.random_inputs import RandomConfig, RandomInputs
from compressor.data.contract import SourceContext
from tests.support.cli import cli

FIELDS = {"dimensions": {"time": 5, "x.2": 3}, "integers": {"ids": [7, 9]}}


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def graph(tmp_path):
    """Write a graph of inputs of many kinds, of which only `x` is used."""
    inputs = [
        value("x", TensorProto.FLOAT, ["n", "time", None]),
        value("half", TensorProto.FLOAT16, ["n", 2]),
        value("ids", TensorProto.INT64, ["n", "time"]),
        value("flag", TensorProto.BOOL, []),
        value("state", TensorProto.FLOAT, [2, "n", 4]),
        value("scale", TensorProto.FLOAT, [1]),
    ]
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [1], [2.0])  # an input with a default
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    outputs = [value("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [scale]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path


def source_of(folder, **fields):
    text = json.dumps({"source": "random", "model": "g.onnx", **fields})
    config = RandomConfig.model_validate_json(text)
    return RandomInputs(), config, SourceContext(folder)


def test_samples_have_the_shapes_and_dtypes_of_the_inputs(graph):
    source, config, context = source_of(graph, **FIELDS)
    assert source.problems(config, context) == []
    batch = source.load(config, context).batch(np.array([0, 3]))
    found = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert found == {
        "x": ("float32", (2, 5, 3)),
        "half": ("float16", (2, 2)),
        "ids": ("int64", (2, 5)),
        "flag": ("bool", (2,)),
        "state": ("float32", (2, 2, 1, 4)),
    }
    assert set(np.unique(batch["ids"])) <= {7, 8, 9}
    again = source.load(config, context).batch(np.array([3]))
    assert np.array_equal(again["x"][0], batch["x"][1])
    other = source.load(config.model_copy(update={"seed": 1}), context).batch(np.array([3]))
    assert not np.array_equal(other["x"], again["x"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "time, a dimension of x, varies: set `dimensions: {time: ...}`"),
        ({"dimensions": {"tme": 3}}, "`dimensions: {tme: ...}` names nothing in the model"),
        (
            {"integers": {"x": [0, 3]}},
            "`integers: {x: ...}` names nothing in the model; it has ids",
        ),
        ({**FIELDS, "integers": {"ids": [3, 2]}}, "is no range of int64"),
    ],
)
def test_missing_sizes_and_unknown_names_are_problems(graph, fields, message):
    source, config, context = source_of(graph, **fields)
    assert any(message in problem for problem in source.problems(config, context))


def test_text_has_no_random_form(graph):
    model = onnx.load(graph / "g.onnx")
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(model, graph / "g.onnx")
    source, config, context = source_of(graph, **FIELDS)
    assert any("half is of string values" in text for text in source.problems(config, context))


PIPELINE = """version: 1
name: random
model: {path: g.onnx}
data:
  r: {source: random, model: g.onnx, dimensions: {time: 5, x.2: 3}}
evaluate:
  latency: {data: r, repeats: 2, warmup: 0}
passes: []
"""


def test_latency_is_measured_with_a_warning(graph):
    file = graph / "pipeline.yaml"
    file.write_text(PIPELINE)
    for command in ("plan", "run"):
        result = cli(command, str(file), "--output-dir", str(graph / "store"))
        assert result.returncode == 0, result.stdout + result.stderr
        text = " ".join((result.stdout + result.stderr).split())
        assert "nothing about accuracy can be told from it" in text, command


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_accuracy_and_calibration_on_random_values_are_refused(graph, command):
    file = graph / "pipeline.yaml"
    calibrated = "passes:\n  - {type: tensorrt, targets: [sm86], calibration: {data: r}}\n"
    file.write_text(
        PIPELINE.replace(
            "latency: {data: r,", "accuracy: {data: r, metrics: [cosine]}\n  latency: {"
        ).replace("passes: []\n", calibrated)
    )
    result = cli(command, str(file))
    assert result.returncode != 0
    text = " ".join((result.stdout + result.stderr).split())
    assert text.count("is random, and nothing but latency can be measured on it") == 2
