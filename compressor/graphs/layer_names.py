"""Names for the results of layers in a graph, so that it can be inspected layer by layer.

``compressor.runtimes.onnxruntime.layers`` reads them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping

import onnx_ir as ir

from compressor.graphs.names import MODULE_PREFIX
from compressor.graphs.values import DEQUANTIZE, QUANTIZE

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def name_layers(model: ir.Model, parts: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Rename the result of each layer to the layer's name, in place.

    A layer that is called twice is known by its last call. A layer that computes an output of the
    graph is left out: the output keeps its name.

    Args:
        model: a graph as torch's exporter wrote it, which notes the module of each node.
        parts: layer to the modules that it consists of.

    Returns:
        Layer name to the name of the value that the layer reads.
    """
    owners = {part: layer for layer, modules in parts.items() for part in modules}
    nodes: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if (layer := _layer_of(node, owners)) is not None:
            nodes.setdefault(layer, []).append(node)
    outputs = set(model.graph.outputs)
    taken = {value.name for value in (*model.graph.inputs, *outputs)}
    taken |= set(model.graph.initializers)
    inputs, results = {}, {}
    for layer, layer_nodes in nodes.items():
        result, source = layer_nodes[-1].outputs[0], _input_of(layer_nodes)
        if source is None or result in outputs or layer in taken:
            continue
        inputs[layer] = source
        results[layer] = result
    for node in model.graph.all_nodes():  # torch names values after operators, as layers may be
        for value in node.outputs:
            if value.name in results and value is not results[value.name]:
                value.name = f"{value.name}.inner"
    for layer, result in results.items():
        result.name = layer
    return {layer: str(value.name) for layer, value in inputs.items()}


def encode_layer_inputs(inputs: Mapping[str, str]) -> str:
    """Return the result of ``name_layers`` as the value of a metadata entry."""
    return json.dumps(dict(sorted(inputs.items())), separators=(",", ":"))


def _layer_of(node: ir.Node, owners: Mapping[str, str]) -> str | None:
    """Return the innermost layer that a node belongs to."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
    for scope in reversed(scopes):
        if (layer := owners.get(scope.removeprefix(MODULE_PREFIX))) is not None:
            return layer
    return None


def _input_of(nodes: list[ir.Node]) -> ir.Value | None:
    """Return the first value from outside that is not constant, before it is rounded.

    Several layers may share one rounding. Of a layer that is called twice, only the nodes that lead
    to its last result are considered.
    """
    own = set(nodes)
    leading = {nodes[-1]}
    for node in reversed(nodes):
        if node in leading:
            leading |= own & {value.producer() for value in node.inputs if value is not None}
    for node in nodes:
        for value in node.inputs if node in leading else ():
            if value is not None and not _is_constant(value) and value.producer() not in own:
                return _before_rounding(value)
    return None


def _is_constant(value: ir.Value) -> bool:
    """Return True if a value depends on constants alone, such as a shared transposed weight."""
    node = value.producer()
    if node is None:
        return value.is_initializer() or value.const_value is not None
    return all(operand is None or _is_constant(operand) for operand in node.inputs)


def _before_rounding(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type in {DEQUANTIZE, QUANTIZE}:
        source = node.inputs[0]
        if source is None:
            break
        value, node = source, source.producer()
    return value
