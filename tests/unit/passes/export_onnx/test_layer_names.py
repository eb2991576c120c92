"""What is exported can be looked at layer by layer, and against the torch model that it was made from."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import tensor_differences
from compressor.errors import UsageError
from compressor.runtimes.formats import open_layers
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig


@pytest.fixture
def exported(parent, context, tmp_path) -> Path:
    out = tmp_path / "exported"
    out.mkdir()
    ExportOnnx().run(ExportOnnxConfig(), parent, out, context())
    return out


BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8),
    "words": np.random.default_rng(0).integers(0, 7, (3, 5)),
}


def test_a_planted_defect_in_the_graph_is_named(parent, exported):
    layers = open_layers("torch", parent.model, 1)
    sound = compare_layers(layers, open_layers("onnx", exported, 1), BATCH)
    assert sound.parts_at is None
    assert {one.layer for one in sound.layers} >= {"conv", "embedding"}
    model = onnx.load(exported / "model.onnx")
    (weight,) = (one for one in model.graph.initializer if one.name == "module.conv.weight")
    weight.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name)
    )
    onnx.save(model, exported / "model.onnx")
    spoilt = compare_layers(layers, open_layers("onnx", exported, 1), BATCH)
    assert (spoilt.layers[0].layer, spoilt.parts_at) == ("conv", "conv")
    assert all((one.added or 0) < 1e-10 for one in spoilt.layers[1:])
    backwards = compare_layers(open_layers("onnx", exported, 1), layers, BATCH)
    assert backwards.layers[0].layer == "conv"
    assert all((one.added or 0) < 1e-10 for one in backwards.layers[1:])


def test_tensors_are_found_by_their_names(parent, exported):
    found = {
        one.name: one for one in tensor_differences(("torch", parent.model), ("onnx", exported))
    }
    assert found["conv.weight"].a == found["conv.weight"].b == (8, 3, 3, 3)
    assert found["conv.weight"].snr_db == pytest.approx(106, abs=1), (
        "the norm behind it is folded into it"
    )


def test_a_graph_without_names_is_told_to_be_exported_again(exported):
    model = onnx.load(exported / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, exported / "model.onnx")
    with pytest.raises(UsageError, match="does not say which values its layers make"):
        open_layers("onnx", exported, 1)
