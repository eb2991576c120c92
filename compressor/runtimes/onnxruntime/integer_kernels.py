"""Which multiplications of an ONNX file ONNX Runtime computes with integers: read from the graph that it makes of the file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from compressor.errors import ModelError
from compressor.graphs.files import MODEL
from compressor.runtimes.onnxruntime.inference import ERRORS, SILENT

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
FLOAT = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Operators of the optimized graph that multiply by a weight."""

    integer: dict[str, int]
    """Operator to how many there are."""
    floating: tuple[str, ...]
    """``operator name`` of each that computes in float."""
    rounding: int
    """QuantizeLinear and DequantizeLinear that are left."""


def inspect_kernels(folder: Path) -> Kernels:
    """What ONNX Runtime, with all its optimizations, makes of ``model.onnx``.

    Raises:
        ModelError: it cannot open the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    with tempfile.TemporaryDirectory() as temporary:
        options.optimized_model_filepath = str(Path(temporary) / MODEL)
        try:
            onnxruntime.InferenceSession(
                str(folder / MODEL), options, providers=["CPUExecutionProvider"]
            )
        except ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot open {folder / MODEL}: {error}") from error
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    integer: dict[str, int] = {}
    floating = []
    rounding = 0
    # What is made of constants alone, such as a weight that is still dequantized when it runs, counts as one.
    for node in graph.node:
        rounding += node.op_type in {"QuantizeLinear", "DequantizeLinear"}
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
