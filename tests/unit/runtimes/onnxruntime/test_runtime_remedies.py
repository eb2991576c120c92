"""Errors that ONNX Runtime raises itself have a remedy."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import ModelError, PassError
from compressor.graphs.files import MODEL
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.remedies import first_line, remedy_of
from tests.support.engines import node
from tests.support.foreign_graphs import graph, weight

SAMPLES = {"x": np.ones((2, 8), np.float32)}


def product(*nodes, shape=("N", 8), opset=17, **fields):
    nodes = [node("MatMul", "x w", "h"), *(nodes or [node("Relu", "h", "y")])]
    return graph(nodes, {"w": weight(8, 4)}, {"x": list(shape)}, {"y": None}, opset, **fields)


def renamed(model, names):
    for each, name in zip(model.graph.node, names, strict=True):
        each.name = name
    return model


def bfloat16():
    model = product()
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [8, 4], [1.0] * 32)
    model.graph.initializer[0].CopyFrom(tensor)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    return model


ACME = {"opsets": [helper.make_opsetid("acme", 1)]}
CASES = {
    "domain": (product(helper.make_node("Own", ["h"], ["y"], domain="acme"), **ACME), "domains"),
    "operator": (product(node("Nope", "h", "y")), "export the model with an opset"),
    "opset": (product(opset=99), "an opset that ONNX Runtime supports"),
    "kernel": (bfloat16(), "in float32"),
    "names": (renamed(product(), ["m", "m"]), "node.name = ''"),
    "shapes": (product(shape=("N", 9)), "onnx.checker.check_model"),
    "missing": (product(node("Add", "h gone", "y")), "onnx.checker.check_model"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_that_does_not_open_comes_with_a_remedy(tmp_path, case):
    model, remedy = CASES[case]
    onnx.save(model, tmp_path / MODEL)
    with pytest.raises(ModelError, match="ONNX Runtime cannot open") as error:
        open_session("onnx", tmp_path, threads=1)
    assert remedy in str(error.value.remedy)
    assert "/onnxruntime_src" not in str(error.value)


def test_names_that_are_removed_let_the_graph_run(tmp_path):
    onnx.save(renamed(product(), ["", ""]), tmp_path / MODEL)
    with open_session("onnx", tmp_path, threads=1) as session:
        assert session.run(SAMPLES)["y"].shape == (2, 4)


def test_a_graph_that_fails_on_a_batch_comes_with_a_remedy(tmp_path):
    nodes = [node("Reshape", "h sizes", "y")]
    model = product(*nodes)
    model.graph.initializer.append(helper.make_tensor("sizes", TensorProto.INT64, [2], [7, -1]))
    onnx.save(model, tmp_path / MODEL)
    with (
        open_session("onnx", tmp_path, threads=1) as session,
        pytest.raises(PassError, match="ONNX Runtime failed") as error,
    ):
        session.run(SAMPLES)
    assert "`show` lists its inputs" in str(error.value.remedy)


def test_what_is_not_known_has_no_remedy():
    assert remedy_of(RuntimeError("out of paper")) is None
    assert first_line(RuntimeError("")) == "RuntimeError"
