"""Graphs whose operators onnx cannot upgrade."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from compressor.errors import RequirementError
from compressor.graphs import files
from compressor.graphs.saving import save_model
from compressor.graphs.upgrade import upgrade_opset
from tests.support.engines import node
from tests.support.foreign_graphs import graph, weight


@pytest.mark.parametrize(
    ("operator", "ir_version"),
    [
        ("Unknown", 8),
        ("Add", 3),  # constants had to be inputs; files of that time may not follow it
    ],
)
def test_a_graph_that_onnx_cannot_convert_is_an_error_with_a_remedy(operator, ir_version):
    weights = {"w": np.ones((2, 2), np.float32)}
    model = graph([node(operator, "x w", "y")], weights, {"x": [2, 2]}, {"y": None}, 7)
    model.ir_version = ir_version
    with pytest.raises(RequirementError, match="onnx cannot upgrade it") as error:
        upgrade_opset(ir.from_proto(model), 21)
    assert "opset 21 or newer" in error.value.remedy


def test_large_weights_are_no_part_of_what_onnx_converts(monkeypatch):
    weights = {
        "w": np.ones((64, 64), np.float32),
        "p": np.array([0, 1], np.int64),  # the axes are an attribute in opset 12
    }
    nodes = [node("MatMul", "x w", "a"), node("Unsqueeze", "a", "y", axes=[1])]
    model = graph(nodes, weights, {"x": [2, 64]}, {"y": None}, 12)
    sizes = []
    convert = onnx.version_converter.convert_version

    def measured(proto, opset):
        sizes.append(proto.ByteSize())
        return convert(proto, opset)

    monkeypatch.setattr(onnx.version_converter, "convert_version", measured)
    before = ir.from_proto(model)
    upgraded = upgrade_opset(before, 21)
    assert sizes[0] < weights["w"].nbytes
    assert [value.name for value in upgraded.graph.inputs] == ["x"]
    assert set(before.graph.initializers) == {"w", "p"}
    session = ort.InferenceSession(ir.to_proto(upgraded).SerializeToString())
    x = np.ones((2, 64), np.float32)
    assert np.array_equal(session.run(None, {"x": x})[0], (x @ weights["w"])[:, None])


@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_what_resizes_keeps_its_coordinates(operator, opset, mode):
    weights = {"s": np.array([1, 1, 2, 3], np.float32)}
    model = graph(
        [node(operator, "x s", "y", mode=mode)], weights, {"x": [1, 2, 4, 5]}, {"y": None}, opset
    )
    upgraded = ir.to_proto(upgrade_opset(ir.from_proto(model), 21))
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 5)).astype(np.float32)
    expected, actual = (
        ort.InferenceSession(each.SerializeToString()).run(None, {"x": x})[0]
        for each in (model, upgraded)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_small_weights_in_another_file_are_read(tmp_path, monkeypatch):
    weights = {name: weight(*shape) for name, shape in (("w", (64, 64)), ("b", (64,)))}
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "y")]
    model = graph(nodes, weights, {"x": [2, 64]}, {"y": None}, 17)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, size_threshold=0)
    monkeypatch.setattr(files, "PROTOBUF_LIMIT_BYTES", 0)  # data stay in their file
    upgraded = upgrade_opset(files.load_typed_model(folder), 21)
    monkeypatch.chdir(tmp_path)
    save_model(upgraded, tmp_path, external=True)
    x = np.ones((2, 64), np.float32)
    result = ort.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(result, x @ weights["w"] + weights["b"], atol=1e-5)
