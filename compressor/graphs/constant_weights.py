"""Weights that a graph computes from constants alone, as Slice, Concat and Unsqueeze of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import onnx
import onnx_ir as ir

from compressor.graphs.names import FOLDED_SUFFIX
from compressor.graphs.operator_weights import WEIGHT_POSITIONS
from compressor.graphs.values import Array, add_initializer, constant_array, remove_unused

_MOVES = frozenset(
    {
        "Cast",
        "Concat",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators by which exporters bring a weight into another layout."""
_LARGEST_BYTES = 2**30
_LONGEST_CHAIN = 16
"""Nodes from a weight to the constants that it is computed from."""


def fold_weights(model: ir.Model, *, twice: bool) -> None:
    """Store the weights of layers that constants alone determine as they are read, in place.

    Simplifiers do so outside of branches and loops only, and not in files beyond 2 GB.

    Args:
        model: the graph.
        twice: store a weight once more if something else reads its constant as it is, as the lookup
            of tied embeddings does. Integers need it; elsewhere the file only grows.
    """
    constants = _Constants(model.opset_imports.get("", 1))
    for node in list(model.graph.all_nodes()):
        for position in WEIGHT_POSITIONS.get(node.op_type, ()) if not node.domain else ():
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is None or value.producer() is None or not constants.is_constant(value):
                continue
            if not twice and _is_read_elsewhere(value):
                continue
            stored = constants.store(model.graph, value)
            for reader, index in list(value.uses()) if stored is not None else ():
                reader.replace_input_with(index, stored)
    for graph in reversed(list(model.graphs())):
        remove_unused(graph)


def _is_read_elsewhere(value: ir.Value) -> bool:
    """Return True if a constant that a value is moved from has a reader that moves nothing."""
    node = value.producer()
    if node is None:
        return any(use.node.op_type not in _MOVES for use in value.uses())
    return any(_is_read_elsewhere(each) for each in node.inputs if each is not None)


@dataclass(slots=True)
class _Constants:
    """Values that a graph computes from constants."""

    opset: int
    arrays: dict[ir.Value, Array] = field(default_factory=dict)
    stored: dict[tuple[str, bytes], ir.Value] = field(default_factory=dict)
    """Initializers by the type and the digest of their values."""

    def store(self, graph: ir.Graph, value: ir.Value) -> ir.Value | None:
        """Return an initializer with the values of a constant, one for all equal ones.

        None if it is too large.
        """
        array = self._array(value)
        if array is None:
            return None
        key = (f"{array.dtype}{array.shape}", sha256(array.tobytes()).digest())
        if key not in self.stored:
            name = f"{value.name}{FOLDED_SUFFIX}"
            self.stored[key] = add_initializer(graph, name, array)
        return self.stored[key]

    def is_constant(self, value: ir.Value, chain: int = _LONGEST_CHAIN) -> bool:
        """Return True if a value is a constant, or constants that nodes move."""
        node = value.producer()
        if node is None:
            return constant_array(value) is not None
        return (
            chain > 0
            and node.op_type in _MOVES
            and not node.domain
            and all(self.is_constant(each, chain - 1) for each in node.inputs if each is not None)
        )

    def _array(self, value: ir.Value) -> Array | None:
        """Return the array of a constant value, computed by onnx's reference evaluator.

        None if it would be too large: no result has more values than the operands together.
        """
        node = value.producer()
        if node is None or value in self.arrays:
            return constant_array(value) if node is None else self.arrays[value]
        inputs = {str(each.name): self._array(each) for each in node.inputs if each is not None}
        sizes = [math.inf if array is None else array.nbytes for array in inputs.values()]
        if sum(sizes) > _LARGEST_BYTES:
            return None
        results = onnx.reference.ReferenceEvaluator(self._model(node)).run(None, inputs)
        self.arrays |= zip(node.outputs, map(np.asarray, results), strict=True)
        return self.arrays[value]

    def _model(self, node: ir.Node) -> onnx.ModelProto:
        """Return a model of a node alone, whose inputs are those of the node."""
        proto = ir.to_proto(node)
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
        return onnx.helper.make_model(
            onnx.helper.make_graph([proto], "constant", [], outputs),
            opset_imports=[onnx.helper.make_opsetid("", self.opset)],
        )
