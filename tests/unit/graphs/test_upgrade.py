"""Graphs whose operators onnx cannot upgrade."""

import numpy as np
import onnx_ir as ir
import pytest

from compressor.errors import RequirementError
from compressor.graphs.upgrade import upgrade_opset
from tests.support.engines import node
from tests.support.foreign_graphs import graph


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
