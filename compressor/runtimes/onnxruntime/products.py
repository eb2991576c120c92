"""Products of integers as ONNX Runtime computes them on this processor."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

LARGEST, MIDDLE = 127, 128
"""Of signed integers; and where unsigned ones have their zero: products of unsigned by signed are the fast ones of x86."""
_TOKENS, _DEPTH = 16, 8
EXACT = {"session.x64quantprecision": "1"}
"""A session's setting: products of unsigned by unsigned integers, which never saturate and are slower."""


def saturate() -> bool:
    """Whether products of unsigned by signed integers are wrong on this processor where they are large.

    Instructions of AVX2 and AVX-512 without VNNI add two of them in 16 bits, which hold 32,767.
    """
    names = ("x", "weights", "middle")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", names, ["y"])],
        "products",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["tokens", _DEPTH])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, ["tokens", 1])],
        [
            onnx.numpy_helper.from_array(np.full((_DEPTH, 1), LARGEST, dtype=np.int8), "weights"),
            onnx.numpy_helper.from_array(np.array(MIDDLE, dtype=np.uint8), "middle"),
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.full((_TOKENS, _DEPTH), MIDDLE + LARGEST, dtype=np.uint8)
    return bool((session.run(None, {"x": x})[0] != _DEPTH * LARGEST**2).any())
