"""Exported graphs layer by layer: names that match the torch model's, and planted defects."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import compare_tensors
from compressor.graphs.layer_names import name_layers
from compressor.runtimes.formats import open_layers, recognize
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.step import ExportOnnx

BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8),
    "words": np.random.default_rng(0).integers(0, 7, (3, 5)),
}


@pytest.fixture
def exported(parent, context, tmp_path) -> Path:
    out = tmp_path / "exported"
    out.mkdir()
    ExportOnnx().run(ExportOnnxConfig(), parent, out, context())
    return out


def open_exported(folder):
    return open_layers("onnx", folder, 1)


def test_a_planted_defect_in_the_graph_is_located(parent, exported):
    layers = open_layers("torch", parent.model, 1)
    intact = compare_layers(layers, open_exported(exported), BATCH)
    assert intact.parts_at is None
    assert {row.layer for row in intact.layers} >= {"conv", "embedding"}
    model = onnx.load(exported / "model.onnx")
    [weight] = [tensor for tensor in model.graph.initializer if tensor.name == "module.conv.weight"]
    changed = numpy_helper.to_array(weight) * np.float32(1.1)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, exported / "model.onnx")
    defective = compare_layers(layers, open_exported(exported), BATCH)
    assert (defective.layers[0].layer, defective.parts_at) == ("conv", "conv")
    assert all((row.added or 0) < 1e-10 for row in defective.layers[1:])
    reversed_order = compare_layers(open_exported(exported), layers, BATCH)
    assert reversed_order.layers[0].layer == "conv"
    assert all((row.added or 0) < 1e-10 for row in reversed_order.layers[1:])


def test_tensors_are_matched_by_their_names(parent, exported):
    differences = {
        tensor.name: tensor
        for tensor in compare_tensors(recognize(parent.model), recognize(exported))
    }
    weight = differences["conv.weight"]
    assert weight.a == weight.b == (8, 3, 3, 3)
    # The norm behind the convolution is folded into it.
    assert weight.snr_db == pytest.approx(106, abs=1)


def test_values_that_torch_names_as_a_layer_give_way_to_it():
    """A layer `layer_norm` at the top, as OWL-ViT has, and another result named `layer_norm`."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    first = ir.node("Relu", [x], outputs=[ir.Value(name="layer_norm")])
    second = ir.node("Abs", [first.outputs[0]], outputs=[ir.Value(name="layer_norm_11")])
    last = ir.node("Neg", [second.outputs[0]], outputs=[ir.Value(name="logits")])
    second.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'module.layer_norm']"
    graph = ir.Graph([x], last.outputs, nodes=[first, second, last], opset_imports={"": 20})
    layer_inputs = name_layers(ir.Model(graph, ir_version=10), {"layer_norm": ("layer_norm",)})
    names = [node.outputs[0].name for node in graph]
    assert names == ["layer_norm.inner", "layer_norm", "logits"]
    assert layer_inputs == {"layer_norm": "layer_norm.inner"}
