"""Integer kernels of ONNX Runtime: where a graph uses them, and if they are exact on this CPU."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from compressor.errors import ModelError
from compressor.graphs.files import MODEL
from compressor.runtimes.onnxruntime.inference import CPU, ERRORS, session_options

INTEGER = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulIntegerToFloat",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulNBits",
    }
)
"""Operators that multiply by a weight in integers."""
FLOAT = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}
)
"""Operators that multiply in float."""
INT8_MAX = 127
UINT8_ZERO_POINT = 128
"""Zero-point of activations as uint8. x86 multiplies unsigned by signed integers fastest."""
EXACT_PRODUCTS = {"session.x64quantprecision": "1"}
"""Session config entry: multiply unsigned by unsigned integers, which is slower and never
saturates."""
SATURATING_PRODUCTS = {"session.x64quantprecision": "0"}
"""Session config entry: ONNX Runtime's default."""
EMULATED_PRODUCTS = {"session.disable_quant_qdq": "1"}
"""Session config entry: compute QuantizeLinear and DequantizeLinear as they stand, and products in
float between them, which no processor saturates."""
_TOKENS, _DEPTH = 16, 8


@dataclass(frozen=True, slots=True)
class Kernels:
    """Operators of an optimized graph that multiply by a weight."""

    integer: dict[str, int]
    """Number of nodes by operator."""
    floating: tuple[str, ...]
    """``operator name`` of each node that computes in float."""
    rounding: int
    """Number of remaining QuantizeLinear and DequantizeLinear nodes."""


def inspect_kernels(folder: Path) -> Kernels:
    """Return the kernels that ONNX Runtime uses for ``model.onnx`` after all its optimizations.

    Raises:
        ModelError: ONNX Runtime cannot open the file.
    """
    graph = _optimize(folder)
    constants = {tensor.name for tensor in graph.initializer}
    integer: dict[str, int] = {}
    floating = []
    rounding = 0
    for node in graph.node:
        rounding += node.op_type in {"QuantizeLinear", "DequantizeLinear"}
        # A value computed from constants alone, such as a weight that is dequantized at run time,
        # counts as a constant.
        if (
            node.op_type in {"DequantizeLinear", "Transpose", "Reshape"}
            and node.input[0] in constants
        ):
            constants.update(node.output)
        if node.op_type in INTEGER:
            integer[node.op_type] = integer.get(node.op_type, 0) + 1
        elif node.op_type in FLOAT and any(name in constants for name in node.input[:2]):
            floating.append(f"{node.op_type} {node.name or node.output[0]}")
    return Kernels(dict(sorted(integer.items())), tuple(floating), rounding)


def _optimize(folder: Path) -> onnx.GraphProto:
    """Return the graph after all optimizations of ONNX Runtime, without external data."""
    options = session_options()
    with tempfile.TemporaryDirectory() as temporary:
        options.optimized_model_filepath = str(Path(temporary) / MODEL)
        try:
            onnxruntime.InferenceSession(str(folder / MODEL), options, providers=CPU)
        except ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot open {folder / MODEL}: {error}") from error
        return onnx.load(options.optimized_model_filepath, load_external_data=False).graph


def integer_products_saturate() -> bool:
    """Return True if large products of unsigned by signed integers saturate on this CPU.

    Instructions of AVX2, and of AVX-512 without VNNI, add two products in 16 bits (at most 32,767).
    """
    names = ("x", "weights", "zero_point")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", names, ["y"])],
        "products",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["tokens", _DEPTH])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, ["tokens", 1])],
        [
            onnx.numpy_helper.from_array(np.full((_DEPTH, 1), INT8_MAX, dtype=np.int8), "weights"),
            onnx.numpy_helper.from_array(np.array(UINT8_ZERO_POINT, dtype=np.uint8), "zero_point"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU)
    x = np.full((_TOKENS, _DEPTH), UINT8_ZERO_POINT + INT8_MAX, dtype=np.uint8)
    return bool((session.run(None, {"x": x})[0] != _DEPTH * INT8_MAX**2).any())
