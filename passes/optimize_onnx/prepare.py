"""The float graph that a step starts from: simplified, of a sufficient opset, in FP32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxscript import ir

from compressor.errors import RequirementError
from compressor.graphs.default_inputs import freeze_default_inputs
from compressor.graphs.files import load_typed_model, typed_model
from compressor.graphs.hard_swish import restore_hard_swish
from compressor.graphs.opsets import BLOCKS_OPSET, INTEGERS_OPSET
from compressor.graphs.simplify import simplify
from compressor.graphs.upgrade import upgrade_opset
from compressor.graphs.values import remove_unused
from passes.optimize_onnx.config import OptimizeOnnxConfig, Precision

_HALF_TYPES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_MOST_NAMES = 5
"""Names that a note lists."""
_OPSETS: dict[Precision, int] = {"int8": INTEGERS_OPSET, "int4": BLOCKS_OPSET}


def prepare_graph(config: OptimizeOnnxConfig, model: Path, note: Callable[[str], None]) -> ir.Model:
    """Return the graph of a folder, simplified if the config wants it, in a sufficient opset.

    Raises:
        ModelError: the graph cannot be read.
        RequirementError: its opset is too old, and onnx cannot upgrade it.
    """
    graph = load_typed_model(model)
    if frozen := freeze_default_inputs(graph):
        names = ", ".join(frozen[:_MOST_NAMES]) + (", …" if frozen[_MOST_NAMES:] else "")
        note(f"{len(frozen)} inputs with a default value became constants: {names}")
    metadata = sorted(graph.metadata_props.items())
    if config.simplify:
        simplification = simplify(graph)
        note(simplification.summary)
        if simplification.applied:
            graph = typed_model(ir.to_proto(simplification.model))
        restore_hard_swish(graph)
        remove_unused(graph.graph)
    before = graph.opset_imports.get("", 1)
    opset = _OPSETS.get(config.precision, 0)
    if before < opset:
        graph = upgrade_opset(graph, opset)
        note(f"upgraded from opset {before} to {opset}")
    graph.metadata_props.clear()  # onnxsim and onnx note their own settings
    graph.metadata_props.update(metadata)
    return graph


def check_graph(config: OptimizeOnnxConfig, model: Path) -> None:
    """Check what can be refused before anything is computed.

    Raises:
        ModelError: the graph cannot be read.
        RequirementError: the graph holds integers already, is in FP16, or is a decoder with a
            cache.
    """
    from compressor.graphs.decoder.interface import CONTEXT_LENGTH_KEY

    graph = load_typed_model(model)
    if CONTEXT_LENGTH_KEY in graph.metadata_props:
        raise RequirementError(
            "the graph is a decoder of `export-onnx`, whose weights `awq` quantizes with less loss",
            remedy="put an `awq` step before `export-onnx`, or set its `floats`",
        )
    integers = integer_operators(graph)
    if integers and config.precision != "fp32":
        raise RequirementError(
            f"`precision: {config.precision}`: the graph is quantized already; it has "
            f"{', '.join(f'{count} {name}' for name, count in integers.items())}",
            remedy="start from the float graph that it was made of, or set `precision: fp32`, "
            "which simplifies it alone",
        )
    if config.precision != "fp32" and _is_half(graph):
        raise RequirementError(
            f"`precision: {config.precision}`: the weights of the graph are in FP16",
            remedy="start from the FP32 graph that it was made of, or set `precision: fp32`, which "
            "simplifies it alone",
        )


def _is_half(graph: ir.Model) -> bool:
    """Return True if most bytes of the weights are in FP16 or BF16."""
    tensors = [value.const_value for value in graph.graph.initializers.values()]
    sizes = [(tensor.dtype, tensor.nbytes) for tensor in tensors if tensor is not None]
    half = sum(size for dtype, size in sizes if dtype in _HALF_TYPES)
    return 2 * half > sum(size for _, size in sizes)


def integer_operators(graph: ir.Model) -> dict[str, int]:
    """Return the operators that round, or compute with integers in place of floats, with counts."""
    counts: dict[str, int] = {}
    for node in graph.graph.all_nodes():
        name = node.op_type
        if name.startswith(("QLinear", "QGemm", "QAttention")) or name in _INTEGER_OPERATORS:
            counts[name] = counts.get(name, 0) + 1
    return counts


_INTEGER_OPERATORS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "MatMulNBits",
        "MatMulBnb4",
        "GatherBlockQuantized",
    }
)
