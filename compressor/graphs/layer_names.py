"""Names for the values that layers make: so ``compressor.runtimes.layers`` can look at a graph layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping

from onnxscript import ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_PREFIX = "module."  # what wraps the module while it is traced


def name_layers(model: ir.Model, parts: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Call the value that each layer makes by the layer's name, in place; returns layer to the value that it reads.

    Args:
        model: as the exporter made it, which notes in each node what module it comes from.
        parts: layer to the modules that it consists of.

    A layer that is called twice is known by its last call; one that gives an output of the graph keeps that output's name.
    """
    owner = {part: layer for layer, some in parts.items() for part in some}
    nodes: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if (layer := _layer(node, owner)) is not None:
            nodes.setdefault(layer, []).append(node)
    outputs = set(model.graph.outputs)
    reads = {}
    taken = {value.name for value in (*model.graph.inputs, *outputs)} | set(
        model.graph.initializers
    )
    for layer, own in nodes.items():
        made, read = own[-1].outputs[0], _read(own)
        if read is None or made in outputs or layer in taken:
            continue
        made.name = layer
        reads[layer] = read
    return {layer: str(value.name) for layer, value in reads.items()}


def names_of(reads: Mapping[str, str]) -> str:
    """What goes into the file."""
    return json.dumps(dict(sorted(reads.items())), separators=(",", ":"))


def _layer(node: ir.Node, owner: Mapping[str, str]) -> str | None:
    """The innermost layer that a node belongs to."""
    for scope in reversed(json.loads(node.metadata_props.get(_SCOPES, "[]").replace("'", '"'))):
        if (layer := owner.get(scope.removeprefix(_PREFIX))) is not None:
            return layer
    return None


def _read(nodes: list[ir.Node]) -> ir.Value | None:
    """The first value from outside that is no constant, before it is rounded: several layers may share one rounding.

    Of a layer that is called twice, only the nodes that lead to its last value are looked at.
    """
    own = set(nodes)
    leading = {nodes[-1]}
    for node in reversed(nodes):
        if node in leading:
            leading |= own & {value.producer() for value in node.inputs if value is not None}
    for node in (one for one in nodes if one in leading):
        for value in node.inputs:
            if value is not None and not _is_constant(value) and value.producer() not in own:
                return _before_rounding(value)
    return None


def _is_constant(value: ir.Value) -> bool:
    """Whether it is made of constants alone, as a transposed weight that several layers share."""
    node = value.producer()
    if node is None:
        return value.is_initializer() or value.const_value is not None
    return all(one is None or _is_constant(one) for one in node.inputs)


def _before_rounding(value: ir.Value) -> ir.Value:
    node = value.producer()
    while (
        node is not None
        and node.op_type in {"DequantizeLinear", "QuantizeLinear"}
        and node.inputs[0] is not None
    ):
        value = node.inputs[0]
        node = value.producer()
    return value
