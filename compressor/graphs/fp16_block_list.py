"""Nodes of an FP32 graph that must not compute in FP16, and why.

A node stays in FP32 if it sums over many values (softmax, norms, reductions), if it reads, writes
or divides by a value outside the range of FP16, reads a sequence or a value of unknown type,
computes positions or shapes, or if it stands between such nodes. A batch normalization at inference
sums nothing: it multiplies each channel by scale / √var, and stays in FP32 only if FP16 does not
hold these factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx
import onnx_ir as ir

from compressor.graphs.values import DEQUANTIZE, QUANTIZE, Array, constant_array, producer_of

FP16_MAX = 65504.0
"""The largest finite value of FP16."""
_SMALLEST_PRECISE = 2.0**-17
"""FP16 represents smaller magnitudes with an error of more than 0.4 %."""
_SUMMING = frozenset(
    {
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceProd",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "CumSum",
        "GlobalAveragePool",
    }
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Operators whose errors add up over the steps; ONNX Runtime's CPU kernels crash in FP16 (1.32)."""
_STEEP = frozenset({"Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos"})
"""Operators that overflow or lose digits first; decomposed norms and softmaxes consist of them."""
_CHEAP = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Abs",
        "Max",
        "Min",
        "Clip",
        "Cast",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
    }
)
_BATCH_NORM = "BatchNormalization"
_DEFAULT_EPSILON = 1e-5
_LARGEST_FACTOR_ERROR = 2.0**-8
_CONTROL_FLOW = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


class Cause(Enum):
    """Kind of reason for which a node stays in FP32."""

    OPERATOR = "the operator loses too much accuracy in FP16"
    RANGE = "a value is beyond the largest value of FP16"
    PRECISION = "a constant or all of a value is too small for FP16"
    POSITIONS = "the node computes shapes or positions"
    SUBGRAPH = "a subgraph reads the result"
    TYPE = "a value is a sequence, or its type is not known"
    NEIGHBOUR = "the node stands between or rounds with nodes in FP32"


@dataclass(frozen=True, slots=True)
class Reason:
    """Reason for which one node stays in FP32."""

    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class BlockList:
    """Criteria of ``blocked_nodes``."""

    magnitudes: Mapping[str, float]
    """Value name to its largest magnitude on samples; infinite or NaN if it was not finite."""
    largest: float = FP16_MAX
    """The largest magnitude that a value in FP16 may have."""
    divisors: Mapping[str, float] = field(default_factory=dict)
    """Name of each computed divisor to its smallest magnitude on samples."""


def blocked_nodes(model: ir.Model, criteria: BlockList) -> dict[ir.Node, Reason]:
    """Return the nodes that ONNX allows in FP16 and that stay in FP32, in the graph's order."""
    convertible = [node for node in model.graph if is_convertible(node)]
    shape_nodes = _shape_nodes(model)
    blocked = {
        node: Reason(Cause.POSITIONS, "made of shapes and constants alone, as positions are")
        for node in convertible
        if node in shape_nodes
    }
    for node in convertible:
        if node not in blocked and (reason := _reason(node, criteria)):
            blocked[node] = reason
    _block_neighbours(convertible, blocked)
    return {node: blocked[node] for node in convertible if node in blocked}


def divisor_of(node: ir.Node) -> str | None:
    """Return the name of the computed FP32 value that a node divides by."""
    if node.op_type != "Div" or (divisor := node.inputs[1]) is None:
        return None
    is_computed = divisor.const_value is None and is_float(divisor)
    return divisor.name if is_computed else None


def is_convertible(node: ir.Node) -> bool:
    """Return True if ONNX defines the operator for FP16; nodes with subgraphs stay as they are."""
    if any(attribute.type in _CONTROL_FLOW for attribute in node.attributes.values()):
        return False
    rounds = node.op_type == QUANTIZE and allows_fp16(node, 1, of_inputs=True)
    return rounds or any(can_output_fp16(node, value) for value in node.outputs)


def can_output_fp16(node: ir.Node, value: ir.Value) -> bool:
    """Return True if ONNX lets the operator give this FP32 output as FP16."""
    return is_float(value) and allows_fp16(node, node.outputs.index(value), of_inputs=False)


def is_float(value: ir.Value) -> bool:
    """Return True if a value is a tensor in FP32; sequences of tensors have a dtype too."""
    return isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def allows_fp16(node: ir.Node, index: int, *, of_inputs: bool) -> bool:
    """Return True if ONNX allows FP16 for an input or an output of a node."""
    version = node.graph.opset_imports.get(node.domain) if node.graph is not None else None
    try:
        schema = onnx.defs.get_schema(node.op_type, version or 1, node.domain)
    except onnx.defs.SchemaError:  # an operator outside ONNX: its types are unknown
        return False
    parameters = schema.inputs if of_inputs else schema.outputs
    parameter = parameters[min(index, len(parameters) - 1)]
    allowed = {
        constraint.type_param_str: constraint.allowed_type_strs
        for constraint in schema.type_constraints
    }
    return "tensor(float16)" in allowed.get(parameter.type_str, ())


def _block_neighbours(convertible: list[ir.Node], blocked: dict[ir.Node, Reason]) -> None:
    """Add nodes between blocked ones until none is left.

    A norm's epsilon vanishes in FP16; and TensorRT multiplies integers only if their scales are of
    one type.
    """
    while True:
        between = {
            node
            for node in convertible
            if node not in blocked and node.op_type in _CHEAP and _is_between(node, blocked)
        }
        rounded = {
            node for node in convertible if node not in blocked and _shares_scale(node, blocked)
        }
        if not between and not rounded:
            return
        blocked |= dict.fromkeys(between, Reason(Cause.NEIGHBOUR, "between nodes in FP32"))
        blocked |= dict.fromkeys(rounded, Reason(Cause.NEIGHBOUR, "rounded with a node in FP32"))


def _crashes(node: ir.Node) -> bool:
    """Return True for a matrix product of a constant and a value whose first axis was moved.

    ONNX Runtime fuses Transpose, with a Cast in between too, into such a product, and then crashes
    (MatmulTransposeFusion, 1.32). So the Transpose before it stays in FP32 as well.
    """
    if node.op_type == "Transpose":
        readers = [reader for reader, index in node.outputs[0].uses() if index == 0]
        return _moves_batch(node) and any(map(_multiplies_constant, readers))
    transpose = producer_of(node.inputs[0], "Transpose") if _multiplies_constant(node) else None
    return transpose is not None and _moves_batch(transpose)


def _multiplies_constant(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and constant_array(node.inputs[1]) is not None


def _moves_batch(transpose: ir.Node) -> bool:
    order = transpose.attributes.get_ints("perm")
    return order is None or order[0] != 0


def _shape_nodes(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that depend on the sizes of the inputs and not on their values."""
    constant: set[ir.Node] = set()
    shapes: set[ir.Node] = set()
    for node in model.graph:
        producers = {
            value.producer()
            for value in node.inputs
            if value is not None and value.const_value is None
        }
        reads_shapes = producers & shapes and producers <= shapes | constant
        if node.op_type in {"Shape", "Size"} or reads_shapes:
            shapes.add(node)
        elif producers <= constant:
            constant.add(node)
    return shapes


def _reason(node: ir.Node, criteria: BlockList) -> Reason | None:
    """Return why a node stays in FP32 regardless of its neighbours; None if it need not."""
    if node.op_type in _SUMMING:
        return Reason(Cause.OPERATOR, "sums over many values")
    if node.op_type == _BATCH_NORM and (problem := _batch_norm_reason(node)) is not None:
        return problem
    if node.op_type in _RECURRENT:
        return Reason(Cause.OPERATOR, "a recurrent layer, whose errors add up over the steps")
    if _crashes(node):
        return Reason(Cause.OPERATOR, "ONNX Runtime 1.32 crashes where it fuses it in FP16")
    if node.op_type in _STEEP:
        return Reason(Cause.OPERATOR, "a power, root, exponential or logarithm")
    for name in (divisor_of(node), *(value.name for value in node.outputs)):
        smallest = criteria.divisors.get(name or "", np.inf)
        if smallest < _SMALLEST_PRECISE:
            return Reason(Cause.PRECISION, f"{name}, a divisor, is down to {smallest:.3g}")
    readers = [reader for value in node.outputs for reader, _ in value.uses()]
    if any(reader.graph is not node.graph for reader in readers):
        return Reason(Cause.SUBGRAPH, "read in a graph within")
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    reasons = (
        _type_reason(value) or (_value_reason(node, value, criteria) if is_float(value) else None)
        for value in values
    )
    return next((reason for reason in reasons if reason is not None), None)


def _type_reason(value: ir.Value) -> Reason | None:
    """Return why a value cannot be cast: operators outside ONNX have results of unknown type."""
    if value.const_value is not None or not value.name:
        return None
    if value.type is None or value.dtype in {None, ir.DataType.UNDEFINED}:
        return Reason(Cause.TYPE, "reads or writes a value of unknown type")
    if not isinstance(value.type, ir.TensorType):
        return Reason(Cause.TYPE, "reads or writes a sequence")
    return None


def _batch_norm_reason(node: ir.Node) -> Reason | None:
    """Return why a batch normalization stays in FP32; None if FP16 holds its factors.

    The factor of a channel is scale / √(var + ε), computed of constants that FP16 rounds.
    """
    training = node.attributes.get("training_mode")
    if (training is not None and training.as_int()) or len(node.outputs) > 1:
        return Reason(Cause.OPERATOR, "normalizes by the batch, which sums over many values")
    constants = [None if value is None else constant_array(value) for value in node.inputs[1:5]]
    scale, bias, mean, variance = (
        array if array is None else array.astype(np.float32) for array in constants
    )
    if scale is None or bias is None or mean is None or variance is None:
        return Reason(Cause.OPERATOR, "its factors are computed, so their range is not known")
    attribute = node.attributes.get("epsilon")
    epsilon = _DEFAULT_EPSILON if attribute is None else attribute.as_float()
    with np.errstate(all="ignore"):
        factors = scale / np.sqrt(variance + epsilon)
        shifts = bias - mean * factors
        half_scale, half_variance = (
            array.astype(np.float16).astype(np.float32) for array in (scale, variance)
        )
        error = np.abs(half_scale / np.sqrt(half_variance + epsilon) - factors)
    if not max(np.abs(factors).max(initial=0), np.abs(shifts).max(initial=0)) <= FP16_MAX:
        return Reason(Cause.RANGE, "scale / √var or the shift is beyond the largest value of FP16")
    # The error of a channel counts against the largest factor, as that of a small weight does.
    if not (error <= _LARGEST_FACTOR_ERROR * np.abs(factors).max(initial=0)).all():
        return Reason(Cause.PRECISION, "scale / √var changes by more than 0.4 % in FP16")
    return None


def _value_reason(node: ir.Node, value: ir.Value, criteria: BlockList) -> Reason | None:
    array = constant_array(value)
    if array is None:
        magnitude = criteria.magnitudes.get(value.name or "", 0.0)
    else:
        magnitude = float(np.abs(array.astype(np.float32)).max(initial=0.0))
    if not magnitude <= criteria.largest:  # true for NaN too
        return Reason(Cause.RANGE, f"{value.name} reaches {magnitude:.3g}")
    if array is None and 0 < magnitude < _SMALLEST_PRECISE:
        return Reason(Cause.PRECISION, f"{value.name} reaches {magnitude:.3g} only")
    if array is not None and _vanishes(node, array.astype(np.float32)):
        return Reason(Cause.PRECISION, f"{value.name} is too small for FP16")
    return None


def is_too_small(largest: float) -> bool:
    """Return True if FP16 holds too few digits of the largest magnitude of a constant."""
    return 0 < largest < _SMALLEST_PRECISE


def _vanishes(node: ir.Node, values: Array) -> bool:
    """Return True if a scale, or the largest value of a constant, loses its digits in FP16.

    Small weights among larger ones may.
    """
    magnitudes = np.abs(values)
    if node.op_type not in {QUANTIZE, DEQUANTIZE}:
        return is_too_small(float(magnitudes.max(initial=0)))
    return bool(((magnitudes > 0) & (magnitudes < _SMALLEST_PRECISE)).any())


def _is_between(node: ir.Node, blocked: Mapping[ir.Node, Reason]) -> bool:
    """Return True if blocked nodes compute all float inputs, and one reads a result."""
    producers = [
        value.producer()
        for value in node.inputs
        if value is not None and is_float(value) and value.const_value is None
    ]
    readers = [reader for value in node.outputs for reader, _ in value.uses()]
    reads_blocked_only = bool(producers) and all(producer in blocked for producer in producers)
    return reads_blocked_only and any(reader in blocked for reader in readers)


def _shares_scale(node: ir.Node, blocked: Mapping[ir.Node, Reason]) -> bool:
    """Return True if a node reads, computes or is a dequantized value that a blocked node uses."""
    if node.op_type == DEQUANTIZE:
        return any(reader in blocked for reader, _ in node.outputs[0].uses())
    if node.op_type == QUANTIZE:
        return any(
            reader in blocked and reader.op_type == DEQUANTIZE
            for reader, _ in node.outputs[0].uses()
        )
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(
        producer is not None and producer in blocked and producer.op_type == DEQUANTIZE
        for producer in producers
    )
