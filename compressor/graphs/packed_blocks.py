"""Packed weights of a traced graph as blocks of integers, which DequantizeLinear reads from opset 21 on.

Shapes: O outputs, I inputs, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnxscript import ir

from compressor.models.quantized.packed_linear import PackedLinear

OPSET = 21
"""The first whose DequantizeLinear has blocks, and integers of 4 bits."""
INTEGERS = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}
"""By bits, and whether zero-points are in the middle."""

Array = np.ndarray[Any, Any]


def stored_as_blocks(model: ir.Model, layers: Mapping[str, PackedLinear]) -> set[str]:
    """In place: constants that are packed layers' weights, as they are or turned, become integers and DequantizeLinear.

    They are found by their values: what a tracer and a simplifier call them is theirs, and the latter puts layers together that
    read the same input.

    Args:
        model: with the weights as floats.
        layers: by name.

    Returns:
        The layers whose weights are integers now.
    """
    weights = {
        name: one.dequantized().numpy()
        for name, one in layers.items()
        if (one.grid.bits, one.grid.symmetric) in INTEGERS
    }
    stored: set[str] = set()
    for constant in list(model.graph.initializers.values()):
        if constant.const_value is None or len(constant.const_value.shape) != 2:
            continue
        array = constant.const_value.numpy()
        for axis, rows_OI in ((0, array.T), (1, array)):
            if names := _made_of(rows_OI, weights):
                _replace(
                    model,
                    constant,
                    names,
                    PackedLinear.joined([layers[name] for name in names]),
                    axis,
                )
                stored |= set(names)
                break
    if stored:
        model.opset_imports[""] = max(OPSET, model.opset_imports[""])
    return stored


def _made_of(rows_OI: Array, weights: Mapping[str, Array]) -> list[str]:
    """The layers whose weights, one below the other, are these; nothing where they are not."""
    found: list[str] = []
    start = 0
    while start < len(rows_OI):
        name = next(
            (
                name
                for name, one in weights.items()
                if np.array_equal(one, rows_OI[start : start + len(one)])
            ),
            None,
        )
        if name is None:
            return []
        found.append(name)
        start += len(weights[name])
    return found


def _replace(
    model: ir.Model, weight: ir.Value, layers: Sequence[str], packed: PackedLinear, axis: int
) -> None:
    """One constant by integers, whose groups lie along ``axis``."""
    grid, turned = packed.grid, ".T" if axis == 0 else ""
    dtype = INTEGERS[grid.bits, grid.symmetric]
    name = f"module.{layers[0]}.weight" if len(layers) == 1 else "+".join(layers)

    def constant(suffix: str, values_OK: Array, dtype: ir.DataType) -> ir.Value:
        array = np.ascontiguousarray(values_OK.T if turned else values_OK).astype(dtype.numpy())
        made = ir.tensor(array, dtype=dtype)
        found = ir.Value(
            name=f"{name}{suffix}{turned}", const_value=made, shape=ir.Shape(array.shape)
        )
        found.dtype = dtype
        model.graph.register_initializer(found)
        return found

    below = grid.middle if grid.symmetric else 0
    inputs = [
        constant(".integers", packed.integers_OI.numpy().astype(np.int16) - below, dtype),
        constant(".scales", packed.scales_OG.float().numpy(), ir.DataType.FLOAT),
    ]
    if not grid.symmetric:
        inputs.append(constant(".zeros", packed.zeros_OG.numpy(), dtype))
    size = grid.width(packed.integers_OI.shape[1])
    node = ir.node("DequantizeLinear", inputs, {"axis": axis, "block_size": size})
    whole = node.outputs[0]
    whole.name, whole.dtype, whole.shape = f"{name}.whole{turned}", ir.DataType.FLOAT, weight.shape
    weight.replace_all_uses_with(whole)
    model.graph.insert_before(model.graph[0], node)
    del model.graph.initializers[str(weight.name)]
