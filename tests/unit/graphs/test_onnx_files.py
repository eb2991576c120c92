"""Reading of ONNX models: hostile external data, and files that are no models."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import ModelError
from compressor.graphs.files import external_files, read_graph
from compressor.runtimes.formats import open_session

WEIGHT = np.arange(6, dtype=np.float32).tobytes()


def test_data_beside_the_graph_is_read(onnx_folder):
    folder = onnx_folder("model.onnx.data")
    (folder / "model.onnx.data").write_bytes(WEIGHT)
    assert external_files(read_graph(folder)) == {"model.onnx.data"}
    with open_session("onnx", folder, threads=1) as session:
        logits = session.run({"x": np.eye(3)})["logits"]
    np.testing.assert_array_equal(logits, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/passwd", "'/etc/passwd' is absolute"),
        ("C:\\secret", "is absolute"),
        ("../secret", "'../secret' is outside the model's folder"),
        ("data/../../secret", "is outside"),
        ("gone.data", "'gone.data' is missing"),
        ("link.data", "'link.data' is a symbolic link"),
        ("folder/secret", "'folder/secret' is a symbolic link"),
        ("hard.data", "'hard.data' is a hard link"),
        ("short.data", "'short.data' is truncated: 4 bytes, 24 expected"),
        ("", "names no file"),
    ],
)
def test_hostile_external_data_is_refused_before_a_runtime_opens_it(
    onnx_folder, tmp_path, monkeypatch, location, reason
):
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("the model was opened")
    )
    folder = onnx_folder(location)
    (tmp_path / "secret").write_bytes(WEIGHT)
    (folder / "link.data").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    os.link(tmp_path / "secret", folder / "hard.data")
    (folder / "short.data").write_bytes(WEIGHT[:4])
    with pytest.raises(ModelError) as caught:
        open_session("onnx", folder, threads=1)
    assert f"w: {reason}" in caught.value.what or reason in caught.value.what


def test_tensors_in_subgraphs_and_attributes_are_checked(onnx_folder):
    folder = onnx_folder()
    model = onnx.load(folder / "model.onnx")
    hidden = TensorProto(
        name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    hidden.external_data.add(key="location", value="/etc/shadow")
    constant = helper.make_node("Constant", [], ["c"], value=hidden)
    branch = helper.make_graph(
        [constant], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])]
    )
    model.graph.node.append(
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="hidden: '/etc/shadow' is absolute"):
        read_graph(folder)


def test_a_missing_a_foreign_and_a_truncated_file_are_refused(onnx_folder, tmp_path):
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
        read_graph(tmp_path)
    folder = onnx_folder()
    content = (folder / "model.onnx").read_bytes()
    for broken in (b"", b"no protobuf at all", content[: len(content) // 2]):
        (folder / "model.onnx").write_bytes(broken)
        with pytest.raises(ModelError, match="is not an ONNX model"):
            read_graph(folder)
