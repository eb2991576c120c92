"""Files of an ONNX model: those that its graphs use, and no other file of the folder."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import ModelError
from compressor.runtimes.formats import recognize


@pytest.fixture(params=["model.onnx", "other.onnx"])
def file(request, tmp_path):
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 8]) for name in "xy")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / request.param
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    for name in ("notes.txt", "training_args.bin", "tokenizer.json", "older.onnx"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "x").write_bytes(b"x")
    return path


def test_only_the_files_that_the_graph_uses_belong_to_the_model(file):
    model = recognize(file)
    tokenizer = {"tokenizer.json"} if file.name == "model.onnx" else set()
    expected = {"model.onnx", "weights.bin"} | tokenizer
    assert set(model.format.files(model.path)) == expected


def test_missing_external_data_is_named(file):
    (file.parent / "weights.bin").unlink()
    model = recognize(file)
    with pytest.raises(ModelError, match=r"external data that is missing: weights\.bin"):
        model.format.facts(model.path)
