"""Store weights as blocks of integers that DequantizeLinear reads (``block_size``, from opset 21).

``store_packed_layers`` carries the integers of packed layers over; ``store_int4_weights`` rounds
float weights to INT4, symmetric, as TensorRT takes them.

Shapes: O outputs, I inputs, G groups of a row; of a weight [K, N], B blocks of S values along K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from compressor.graphs.names import INTEGER_SUFFIX, MODULE_PREFIX, TRANSPOSED_SUFFIX
from compressor.graphs.opsets import BLOCKS_OPSET
from compressor.graphs.values import (
    DEQUANTIZE,
    Array,
    add_initializer,
    attribute,
    describe_output,
    insert_first,
    unique_name,
)
from compressor.models.quantized.packed_linear import PackedLinear

BLOCK_TYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}
"""(bits, symmetric) to the type of the integers; symmetric ones have no zero-points."""
_INT4_MAX = 7
_CLIPPING_RATIOS = np.linspace(1.0, 0.7, 7)
"""Candidates for the end of a block's grid, as fractions of its largest magnitude."""


def store_packed_weight(
    model: ir.Model, nodes: Sequence[ir.Node], packed: PackedLinear, axis: int
) -> None:
    """Let products read their weight as integers and DequantizeLinear, in place.

    Args:
        model: the graph.
        nodes: products with one constant as their second operand.
        packed: the weight.
        axis: axis of the weight that the groups divide.
    """
    weight = nodes[0].inputs[1]
    assert weight is not None  # noqa: S101 - a product has a weight
    result = _dequantized(model.graph, weight, str(weight.name), packed, axis)
    for node in nodes:
        node.replace_input_with(1, result)
    if not weight.uses() and not weight.is_graph_output():
        del model.graph.initializers[str(weight.name)]


def store_packed_layers(model: ir.Model, layers: Mapping[str, PackedLinear]) -> set[str]:
    """Replace the weights of packed layers by integers and DequantizeLinear, in place.

    Weights are recognized by their values, as they are or transposed: a tracer and a simplifier
    choose their own names, and the latter joins layers that read the same input.

    Args:
        model: a graph that holds the layers' weights as floats.
        layers: the packed layers by name.

    Returns:
        The names of the layers that are stored as integers.
    """
    weights = {
        name: layer.dequantize().numpy()
        for name, layer in layers.items()
        if (layer.grid.bits, layer.grid.symmetric) in BLOCK_TYPES
    }
    stored: set[str] = set()
    for constant in list(model.graph.initializers.values()):
        if not _is_matrix(constant):
            continue
        array = _array(constant)
        for axis, rows_OI in ((0, array.T), (1, array)):
            if names := _layers_of(rows_OI, weights):
                packed = PackedLinear.concatenate([layers[name] for name in names])
                _store_packed(model.graph, constant, names, packed, axis)
                stored |= set(names)
                break
    if stored:
        model.opset_imports[""] = max(BLOCKS_OPSET, model.opset_imports[""])
    return stored


def _is_matrix(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == 2


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None  # noqa: S101 - `_is_matrix` has looked
    return value.const_value.numpy()


def _layers_of(rows_OI: Array, weights: Mapping[str, Array]) -> list[str]:
    """Return the layers whose weights, stacked, are these rows; empty if there are none."""
    names: list[str] = []
    start = 0
    while start < len(rows_OI):
        matches = (
            name
            for name, weight_OI in weights.items()
            if np.array_equal(weight_OI, rows_OI[start : start + len(weight_OI)])
        )
        name = next(matches, None)
        if name is None:
            return []
        names.append(name)
        start += len(weights[name])
    return names


def _store_packed(
    graph: ir.Graph, weight: ir.Value, layers: Sequence[str], packed: PackedLinear, axis: int
) -> None:
    """Replace one constant by integers whose groups lie along ``axis``."""
    name = f"{MODULE_PREFIX}{layers[0]}.weight" if len(layers) == 1 else "+".join(layers)
    result = _dequantized(graph, weight, name, packed, axis)
    for reader, index in list(weight.uses()):
        reader.replace_input_with(index, result)
    del graph.initializers[str(weight.name)]


def _dequantized(
    graph: ir.Graph, weight: ir.Value, name: str, packed: PackedLinear, axis: int
) -> ir.Value:
    """Add the integers of a weight, and return the value that they are dequantized to."""
    grid, suffix = packed.grid, TRANSPOSED_SUFFIX if axis == 0 else ""
    dtype = BLOCK_TYPES[grid.bits, grid.symmetric]

    def add(part: str, values_OK: Array, dtype: ir.DataType) -> ir.Value:
        values = values_OK.T if axis == 0 else values_OK
        stored = np.ascontiguousarray(values).astype(dtype.numpy())
        return add_initializer(graph, f"{name}{part}{suffix}", stored, dtype)

    zero = grid.middle if grid.symmetric else 0
    inputs = [
        add(INTEGER_SUFFIX, packed.integers_OI.numpy().astype(np.int16) - zero, dtype),
        add(".scales", packed.scales_OG.float().numpy(), ir.DataType.FLOAT),
    ]
    if not grid.symmetric:
        inputs.append(add(".zeros", packed.zeros_OG.numpy(), dtype))
    size = grid.width(packed.integers_OI.shape[1])
    node = ir.node(DEQUANTIZE, inputs, {"axis": axis, "block_size": size})
    whole = unique_name(graph, f"{name}.whole{suffix}")
    result = describe_output(node, whole, ir.DataType.FLOAT, weight.shape)
    insert_first(graph, node)
    return result


def store_int4_weights(model: ir.Model, size: int) -> tuple[int, list[str]]:
    """Store the weights of MatMul and Gemm as INT4 in blocks, in place.

    A weight is a constant matrix that nothing but such products read, as their second operand.

    Args:
        model: a graph whose values have types.
        size: values in a block; a weight whose K is not a multiple of it is left as it is.

    Returns:
        The number of weights that are INT4 now, and the names of those that are left.
    """
    count, skipped = 0, []
    for value in list(model.graph.initializers.values()):
        products = _products(value)
        is_weight = _is_matrix(value) and value.dtype == ir.DataType.FLOAT
        if not is_weight or not products or len(products) < len(value.uses()):
            continue
        weight = _array(value)
        axes = {int(attribute(product, "transB", 0) != 0) for product in products}
        axis = axes.pop()
        if axes or weight.shape[axis] % size:
            skipped.append(str(value.name))
            continue
        _store_int4(model.graph, value, weight.astype(np.float32), axis, size)
        count += 1
    return count, skipped


def _products(value: ir.Value) -> list[ir.Node]:
    """Return the products that read a value as their second operand."""
    return [
        reader
        for reader, index in value.uses()
        if reader.op_type in {"MatMul", "Gemm"} and index == 1
    ]


def _store_int4(graph: ir.Graph, value: ir.Value, weight: Array, axis: int, size: int) -> None:
    integers, scales = quantize_blocks(weight.T if axis else weight, size)
    if axis:
        integers, scales = integers.T, scales.T
    name = str(value.name)
    inputs = [
        add_initializer(graph, f"{name}.int4", np.ascontiguousarray(integers), ir.DataType.INT4),
        add_initializer(graph, f"{name}.scales", np.ascontiguousarray(scales)),
    ]
    layout = {"axis": axis, "block_size": size}
    node = ir.node(DEQUANTIZE, inputs, layout, name=f"{name}.dequantize")
    _replace_weight(graph, value, node, f"{name}.dequantized")


def quantize_blocks(weight_KN: Array, size: int) -> tuple[Array, Array]:
    """Round a weight to INT4 in blocks of ``size`` values along K.

    Each block takes the scale with the least squared error among several clipping ratios.

    Args:
        weight_KN: float32; K is a multiple of ``size``.
        size: values in a block.

    Returns:
        Integers from -7 to 7, int8 [K, N], and scales, float32 [B, N].
    """
    weight_BSN = weight_KN.reshape(-1, size, weight_KN.shape[1])
    peaks_B1N = np.abs(weight_BSN).max(axis=1, keepdims=True)
    least_error_B1N = np.full_like(peaks_B1N, np.inf)
    scales_B1N = np.ones_like(peaks_B1N)
    for ratio in _CLIPPING_RATIOS:
        trial_B1N = np.where(peaks_B1N > 0, peaks_B1N * np.float32(ratio / _INT4_MAX), 1)
        trial_B1N = trial_B1N.astype(np.float32)
        difference_BSN = _round(weight_BSN, trial_B1N) * trial_B1N - weight_BSN
        error_B1N = (difference_BSN**2).sum(axis=1, keepdims=True)
        scales_B1N = np.where(error_B1N < least_error_B1N, trial_B1N, scales_B1N)
        least_error_B1N = np.minimum(error_B1N, least_error_B1N)
    integers_KN = _round(weight_BSN, scales_B1N).reshape(weight_KN.shape).astype(np.int8)
    return integers_KN, scales_B1N[:, 0]


def _round(weight_BSN: Array, scales_B1N: Array) -> Array:
    rounded: Array = np.clip(np.rint(weight_BSN / scales_B1N), -_INT4_MAX, _INT4_MAX)
    return rounded


def _replace_weight(graph: ir.Graph, weight: ir.Value, node: ir.Node, output: str) -> None:
    """Let the readers of a constant read a DequantizeLinear node, and remove the constant."""
    result = describe_output(node, output, ir.DataType.FLOAT, weight.shape)
    insert_first(graph, node)
    for reader, index in list(weight.uses()):
        reader.replace_input_with(index, result)
    del graph.initializers[str(weight.name)]
