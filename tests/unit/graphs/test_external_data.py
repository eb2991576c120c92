"""The names of external files are read from an ONNX file as onnx itself reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compressor.errors import ModelError
from compressor.graphs.external_data import external_locations
from compressor.graphs.files import external_files
from tests.support.tiny_files import tiny_onnx


def external_tensor(name: str, location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_locations_of_initializers_attributes_subgraphs_and_functions(tmp_path: Path) -> None:
    inner = helper.make_graph([], "inner", [], [], [external_tensor("a", "sub/a.bin")])
    branch = helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["k"], value=external_tensor("b", "b.bin"))
    opset = helper.make_opsetid("", 20)
    function = helper.make_function("f", "F", [], ["k"], [constant], [opset])
    graph = helper.make_graph(
        [branch, constant], "g", [], [], [external_tensor("w", "weights.bin")] * 2
    )
    model = helper.make_model(graph, functions=[function], opset_imports=[opset])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    expected = {"weights.bin", "sub/a.bin", "b.bin"}
    assert external_locations(tmp_path / "m.onnx") == expected == external_files(model)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../b"])
def test_names_that_lead_out_of_the_folder_are_left_out(
    onnx_folder: Callable[[str | None], Path], location: str
) -> None:
    assert external_locations(onnx_folder(location) / "model.onnx") == set()


def test_a_file_without_external_data_names_none(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(tiny_onnx())
    assert external_locations(tmp_path / "m.onnx") == set()


@pytest.mark.parametrize("kept", range(1, len(tiny_onnx()), 7))
def test_a_truncated_file_is_an_error_or_names_none(tmp_path: Path, kept: int) -> None:
    (tmp_path / "m.onnx").write_bytes(tiny_onnx()[:kept])
    try:
        assert external_locations(tmp_path / "m.onnx") == set()
    except ModelError as error:
        assert "truncated" in error.what
