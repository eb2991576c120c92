"""Products of traced graphs with packed weights as MatMulNBits, ONNX Runtime's operator.

Shapes: O outputs, I inputs, K blocks of a row of S inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from compressor.graphs.decoder.block_sizes import block_size
from compressor.graphs.matmul_nbits import FLOAT_LEVEL
from compressor.graphs.values import (
    Array,
    add_initializer,
    attribute,
    constant_array,
    describe_output,
    insert_first,
)
from compressor.models.quantized.bit_packing import pack_bytes
from compressor.models.quantized.packed_linear import PackedLinear

_MICROSOFT = "com.microsoft"
_BITS = (2, 4, 8)
"""Bits of MatMulNBits."""

ReadLayers = Callable[[frozenset[int]], Iterable[tuple[str, PackedLinear]]]
"""Returns the packed layers with one of the given numbers of inputs, by name."""


@dataclass(frozen=True, slots=True)
class _Product:
    """A MatMul, or a Gemm that is one, with a constant weight."""

    node: ir.Node
    weight: ir.Value
    rows_OI: Array


def store_packed_products(model: ir.Model, read_layers: ReadLayers) -> list[str]:
    """Replace products with the weights of packed layers by MatMulNBits, in place.

    Weights are recognized by their values: a tracer chooses its own names, and a simplifier joins
    layers that read the same input. Activations are not rounded.

    Args:
        model: a graph that holds the layers' weights as floats.
        read_layers: reads packed layers, one in memory at a time.

    Returns:
        The names of the layers that are stored as integers.
    """
    products = list(_products(model.graph))
    widths = frozenset(product.rows_OI.shape[1] for product in products)
    rows = {_key(row) for product in products for row in product.rows_OI}
    layers: dict[int, list[tuple[str, PackedLinear]]] = {}
    for name, layer in read_layers(widths) if products else ():
        first = _key(layer.rows(0, 1).dequantize().numpy()[0])
        is_possible = layer.grid.bits in _BITS and block_size(
            layer.grid, layer.integers_OI.shape[1]
        )
        if first in rows and is_possible:
            layers.setdefault(first, []).append((name, layer))
    stored: list[str] = []
    for product in products:
        found = _layers_of(product.rows_OI, layers)
        if found:
            _replace(model.graph, product, found)
            stored += found
    if stored:
        model.opset_imports[_MICROSOFT] = 1
    return sorted(set(stored))


def _key(row_I: Array) -> int:
    return hash(np.ascontiguousarray(row_I, dtype=np.float32).tobytes())


def _products(graph: ir.Graph) -> Iterator[_Product]:
    """Yield the products whose second operand is a constant matrix."""
    for node in graph:
        if node.op_type not in {"MatMul", "Gemm"} or node.domain not in {"", "ai.onnx"}:
            continue
        weight = node.inputs[1]
        array = constant_array(weight)
        if weight is None or array is None or array.ndim != 2 or array.dtype != np.float32:
            continue
        is_plain = not attribute(node, "transA", 0) and all(
            attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta")
        )
        if is_plain:
            yield _Product(node, weight, array if attribute(node, "transB", 0) else array.T)


def _layers_of(
    rows_OI: Array, layers: Mapping[int, list[tuple[str, PackedLinear]]]
) -> dict[str, PackedLinear]:
    """Return the layers whose weights, stacked, are these rows; none if there are not."""
    found: dict[str, PackedLinear] = {}
    start = 0
    while start < len(rows_OI):
        matches = (
            (name, layer)
            for name, layer in layers.get(_key(rows_OI[start]), ())
            if np.array_equal(
                layer.dequantize().numpy(), rows_OI[start : start + len(layer.integers_OI)]
            )
        )
        match = next(matches, None)
        if match is None:
            return {}
        found |= [match]
        start += len(match[1].integers_OI)
    grids = {layer.grid for layer in found.values()}
    return found if len(grids) == 1 else {}


def _replace(graph: ir.Graph, product: _Product, layers: Mapping[str, PackedLinear]) -> None:
    """Put MatMulNBits in the place of a product."""
    node, packed = product.node, PackedLinear.concatenate(list(layers.values()))
    outputs, inputs = packed.integers_OI.shape
    bits, size = packed.grid.bits, block_size(packed.grid, inputs)
    repeats, name = packed.grid.width(inputs) // size, "+".join(layers)
    data_OKS = pack_bytes(packed.integers_OI.view(outputs, inputs // size, size), bits)
    operands = [
        node.inputs[0],
        add_initializer(graph, f"{name}.data", data_OKS.numpy()),
        _scales(graph, name, packed.scales_OG.repeat_interleave(repeats, dim=1)),
        None,
        None,
        node.inputs[2] if len(node.inputs) > 2 else None,
    ]
    if not packed.grid.symmetric:
        zeros = pack_bytes(packed.zeros_OG.repeat_interleave(repeats, dim=1), bits)
        operands[3] = add_initializer(graph, f"{name}.zeros", zeros.numpy().ravel())
    while operands[-1] is None:
        operands.pop()
    replacement = ir.node(
        "MatMulNBits",
        operands,
        {
            "K": inputs,
            "N": outputs,
            "bits": bits,
            "block_size": size,
            "accuracy_level": FLOAT_LEVEL,
        },
        domain=_MICROSOFT,
        name=node.name,
        num_outputs=1,
    )
    [before], [after] = node.outputs, replacement.outputs
    after.name, after.type, after.shape = before.name, before.type, before.shape
    graph.insert_before(node, replacement)
    for number, output in enumerate(graph.outputs):
        if output is before:
            graph.outputs[number] = after
    before.replace_all_uses_with(after)
    graph.remove(node, safe=True)
    if not product.weight.uses() and product.weight.name in graph.initializers:
        del graph.initializers[str(product.weight.name)]


def _scales(graph: ir.Graph, name: str, scales_OK: torch.Tensor) -> ir.Value:
    """Return the scales in float32; those in float16 are stored as such and cast."""
    if scales_OK.dtype != torch.float16:
        return add_initializer(graph, f"{name}.scales", scales_OK.float().numpy())
    stored = add_initializer(graph, f"{name}.scales", scales_OK.numpy())
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}.scales.cast")
    insert_first(graph, cast)
    return describe_output(cast, f"{name}.scales.float", ir.DataType.FLOAT, stored.shape)
