"""A graph looked at by names, for those who judge it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


class View:
    """A graph by names.

    Attributes:
        nodes: all of them, of graphs within too.
        constants: name to tensor.
        producers: value to the node that makes it.
        readers: value to the nodes that read it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graphs = list(_graphs(model.graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    @cached_property
    def types(self) -> dict[str, int]:
        """Value to its element type, as far as ONNX can infer it."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except (
            onnx.shape_inference.InferenceError,
            ValueError,
        ):  # contradictory; or over 2 GB without external data
            graph = self.model.graph
        inner = [
            one
            for graph in _graphs(graph)
            for one in (*graph.input, *graph.value_info, *graph.output)
        ]
        return {one.name: one.type.tensor_type.elem_type for one in inner} | {
            name: tensor.data_type for name, tensor in self.constants.items()
        }

    def opset(self, domain: str) -> int:
        """The version of a domain's operators; 1 where the graph does not say."""
        known: dict[str, int] = {
            one.domain or "ai.onnx": one.version for one in self.model.opset_import
        }
        return known.get(domain or "ai.onnx", 1)

    def values(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant; None for what is none, lies outside the file, or is damaged."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError):  # damaged
            return None

    def is_dequantized(self, name: str) -> bool:
        """Whether a value comes out of DequantizeLinear."""
        return name in self.producers and self.producers[name].op_type == "DequantizeLinear"

    def is_weight(self, name: str) -> bool:
        """Whether a value is a constant, or the dequantized form of one."""
        return name in self.constants or (
            self.is_dequantized(name) and self.producers[name].input[0] in self.constants
        )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (
                (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs
            ):
                yield from _graphs(inner)


def named(node: onnx.NodeProto) -> str:
    """A node as complaints call it."""
    return f"{node.op_type} {node.name or '→ ' + node.output[0]}"
