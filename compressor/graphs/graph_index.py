"""Lookup of an ONNX graph's nodes and constants by name, for code that does not rewrite it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


class GraphIndex:
    """Nodes and constants of an ONNX model by the names of values.

    Attributes:
        nodes: all nodes, those of subgraphs included.
        constants: name to tensor, for initializers and Constant nodes.
        producers: value name to the node that computes it.
        consumers: value name to the nodes that read it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graphs = list(_with_subgraphs(model.graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    @cached_property
    def types(self) -> dict[str, int]:
        """Value name to element type, as far as ONNX can infer it."""
        return {value.name: value.type.tensor_type.elem_type for value in self._values} | {
            name: tensor.data_type for name, tensor in self.constants.items()
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """Value name to shape, as far as ONNX can infer it; names of sizes that vary, or ""."""
        return {
            value.name: tuple(
                size.dim_value if size.HasField("dim_value") else size.dim_param
                for size in value.type.tensor_type.shape.dim
            )
            for value in self._values
            if value.type.tensor_type.HasField("shape")
        } | {name: tuple(tensor.dims) for name, tensor in self.constants.items()}

    @cached_property
    def _values(self) -> list[onnx.ValueInfoProto]:
        """Inputs, outputs and inferred values, those of subgraphs included."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except (onnx.shape_inference.InferenceError, ValueError):
            # Contradictory types; or ValueError: over 2 GB without external data.
            graph = self.model.graph
        return [
            value
            for subgraph in _with_subgraphs(graph)
            for value in (*subgraph.input, *subgraph.value_info, *subgraph.output)
        ]

    def opset(self, domain: str) -> int:
        """Return the version of a domain's operators; 1 where the model does not import it."""
        versions: dict[str, int] = {
            entry.domain or "ai.onnx": entry.version for entry in self.model.opset_import
        }
        return versions.get(domain or "ai.onnx", 1)

    def array(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return a constant's values.

        None for a value that is computed, lies outside the file or is damaged.
        """
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError):  # damaged
            return None

    def is_dequantized(self, name: str) -> bool:
        """Return True if DequantizeLinear computes the value."""
        return name in self.producers and self.producers[name].op_type == "DequantizeLinear"

    def is_weight(self, name: str) -> bool:
        """Return True if the value is a constant, or the dequantized form of one."""
        return name in self.constants or (
            self.is_dequantized(name) and self.producers[name].input[0] in self.constants
        )


def subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs of a node, such as the branches of an If, and theirs."""
    for attribute in node.attribute:
        single = (attribute.g,) if attribute.HasField("g") else ()
        for subgraph in (*single, *attribute.graphs):
            yield from _with_subgraphs(subgraph)


def _with_subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs."""
    yield graph
    for node in graph.node:
        yield from subgraphs_of(node)


def node_label(node: onnx.NodeProto) -> str:
    """Return operator and name of a node, for messages."""
    return f"{node.op_type} {node.name or '→ ' + node.output[0]}"
