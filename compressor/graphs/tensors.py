"""Weights of an ONNX graph by the module names that they had in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compressor.graphs.files import MODEL, read_graph
from compressor.graphs.names import (
    HALF_SUFFIX,
    INTEGER_SUFFIX,
    MODULE_PREFIX,
    TRANSPOSED_SUFFIX,
)
from compressor.graphs.values import Array

_INNER_LAYER = ".layer."
"""Inserted into the names of weights that an integer layer wraps."""


def graph_tensors(folder: Path) -> dict[str, Callable[[], Array]]:
    """Return a reader for every named weight of ``model.onnx``; integers are dequantized.

    The file is read whole.

    Raises:
        ModelError: as ``read_graph``.
    """
    read_graph(folder)
    graph = onnx.load(str(folder / MODEL)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    readers: dict[str, Callable[[], Array]] = {}
    for name, tensor in tensors.items():
        base, integers, suffix = name.removesuffix(HALF_SUFFIX).partition(INTEGER_SUFFIX)
        if not name.startswith(MODULE_PREFIX) or not tensor.dims:
            continue
        plain_name = base.removeprefix(MODULE_PREFIX).replace(_INNER_LAYER, ".")
        if integers and name in nodes:
            transposed = suffix == TRANSPOSED_SUFFIX
            readers[plain_name] = partial(_dequantize, nodes[name], tensors, transposed)
        else:
            readers[plain_name] = partial(onnx.numpy_helper.to_array, tensor)
    return readers


def _dequantize(node: Any, tensors: Mapping[str, Any], transposed: bool) -> Array:
    """Compute a DequantizeLinear of constants, with scales per tensor, axis or block."""
    constants = [tensors[name] for name in node.input if name in tensors]
    # A zero-point of zeros may be a computed value, which counts as absent.
    values, scales, *zero_points = (
        onnx.numpy_helper.to_array(tensor).astype(np.float32) for tensor in constants
    )
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block_size = attributes.get("axis", 1), attributes.get("block_size", 0)

    def broadcastable(array: Array) -> Array:
        if block_size:
            return np.repeat(array, block_size, axis)
        if not array.ndim:
            return array
        return array.reshape([-1 if index == axis else 1 for index in range(values.ndim)])

    offsets = broadcastable(zero_points[0]) if zero_points else 0
    weights: Array = (values - offsets) * broadcastable(scales)
    return weights.T if transposed else weights
