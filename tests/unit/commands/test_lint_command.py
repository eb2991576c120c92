"""The command `lint`, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.cli import cli


def write_uint8_graph(file: Path) -> None:
    """Write a graph that quantizes its input to UINT8, and dequantizes it again."""
    constants = {"scale": np.float32(0.1), "zero": np.uint8(7)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y"))
    initializers = [
        numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, "uint8", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), file)


def test_lint_names_the_nodes_that_a_target_rejects(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    write_uint8_graph(file)
    rejected = cli("lint", file, "--target", "tensorrt")
    assert rejected.returncode == 1
    assert "QuantizeLinear quantize: UINT8 integers" in rejected.stdout
    accepted = cli("lint", file, "--json")
    assert accepted.returncode == 0
    found = json.loads(accepted.stdout)
    assert found["complaints"] == []
    assert (
        "around float operators (1 DequantizeLinear, 1 QuantizeLinear)"
        in (found["contents"]["quantized"])
    )
    for wrong in ([file, "--target", "toaster"], ["nothing.onnx"]):
        done = cli("lint", *wrong)
        assert done.returncode == 2
        assert "error:" in done.stderr
        assert "Traceback" not in done.stderr
