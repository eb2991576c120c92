"""Fixtures of several packages: a small ONNX folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def onnx_folder(tmp_path: Path) -> Callable[[str | None], Path]:
    """Return a writer of ``logits = x @ w``.

    With a location, the weight is external data in that file, which is not written.
    """

    def make(location: str | None = None) -> Path:
        weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
        if location is not None:
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", "24")):
                weight.external_data.add(key=key, value=value)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["logits"])],
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
            [weight],
        )
        folder = tmp_path / "onnx"
        folder.mkdir()
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder

    return make
