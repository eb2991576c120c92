"""LSTM layers with INT8 weights, as ONNX Runtime computes them (DynamicQuantizeLSTM).

Each step multiplies integers: values and states are rounded with ranges of the step itself, so no
range has to be known in advance. There is no such kernel for GRU and RNN.

Shapes: D directions, G four gates of each hidden unit, K inputs or hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import Array, add_initializer, attribute, constant_array

_WEIGHTS = (1, 2)
"""Positions of the weights of inputs and of states among the inputs of LSTM."""
_PEEPHOLES = 7
_OPERANDS = 8
_HIGHEST = 127
_DOMAIN = "com.microsoft"

WeightScales = Callable[[Array], Array]
"""Rows of weights [O, K] to a scale for each row [O]."""


def float_lstms(model: ir.Model) -> dict[str, ir.Node]:
    """Return the LSTM layers that can have INT8 weights, by their names or those of the results.

    Those in branches and loops too. Branches may repeat a name: the second one has a number.
    """
    layers: dict[str, ir.Node] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "LSTM" and not node.domain and _is_supported(node):
            name = lstm_name(node)
            numbered = (f"{name}.{number}" for number in count(2))
            layers[name if name not in layers else next(n for n in numbered if n not in layers)] = (
                node
            )
    return layers


def lstm_name(node: ir.Node) -> str:
    """Return the name of a layer, or that of its first result."""
    return node.name or next(str(value.name) for value in node.outputs if value.name)


def store_integer_lstm(model: ir.Model, node: ir.Node, scales: WeightScales) -> None:
    """Store the weights of an LSTM as INT8 with a scale for each gate of each unit, in place.

    Args:
        model: the graph.
        node: a layer of ``float_lstms``.
        scales: the choice of scales.
    """
    model.opset_imports.setdefault(_DOMAIN, 1)
    quantization: list[Array] = []
    for position in _WEIGHTS:
        weight = node.inputs[position]
        weight_DGK = constant_array(weight)
        assert weight is not None and weight_DGK is not None  # noqa: S101 - of float_lstms
        scales_DG = scales(weight_DGK.reshape(-1, weight_DGK.shape[2])).astype(np.float32)
        scales_DG = scales_DG.reshape(weight_DGK.shape[:2])
        integers_DGK = np.clip(np.rint(weight_DGK / scales_DG[:, :, None]), -_HIGHEST, _HIGHEST)
        integers_DKG = np.ascontiguousarray(integers_DGK.astype(np.int8).transpose(0, 2, 1))
        stored = add_initializer(model.graph, f"{weight.name}.integers", integers_DKG)
        node.replace_input_with(position, stored)
        if not weight.uses() and isinstance(weight.graph, ir.Graph):
            del weight.graph.initializers[str(weight.name)]
        quantization += [scales_DG, np.zeros(scales_DG.shape, np.int8)]
    node.resize_inputs(_OPERANDS + len(quantization))
    for index, array in enumerate(quantization):
        name = f"{node.outputs[0].name or node.name}.grid{index}"
        node.replace_input_with(_OPERANDS + index, add_initializer(model.graph, name, array))
    node.attributes.pop("layout", None)
    node.domain, node.op_type = _DOMAIN, "DynamicQuantizeLSTM"


def _is_supported(node: ir.Node) -> bool:
    """Return True for constant weights in FP32, no peepholes, and batches in the second axis."""
    weights = [node.inputs[position] for position in _WEIGHTS]
    is_constant = all(
        weight is not None
        and weight.dtype == ir.DataType.FLOAT
        and weight.is_initializer()
        and constant_array(weight) is not None
        for weight in weights
    )
    has_peepholes = len(node.inputs) > _PEEPHOLES and node.inputs[_PEEPHOLES] is not None
    return is_constant and not has_peepholes and not attribute(node, "layout", 0)
