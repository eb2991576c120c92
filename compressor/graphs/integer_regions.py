"""The values of a float graph that are rounded to integers, so that a runtime multiplies integers.

Products (``Conv``, ``MatMul``, ``Gemm`` with a constant weight) read rounded values. ONNX Runtime
computes a convolution with integers only if its result is rounded too, and it adds, pools and joins
rounded values without turning them back into floats, where all operands and the result are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from compressor.graphs.integer_gates import gate_start
from compressor.graphs.values import constant_array
from compressor.models.quantized.quantization import Target

PRODUCTS = frozenset({"Conv", "MatMul", "Gemm"})
_CLIPS = frozenset({"Relu", "Clip"})
"""Operators that rounding to integers from 0 up makes redundant."""
_MOVES = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Split",
        "Tile",
        "Expand",
        "Gather",
        "Resize",
    }
)
"""Operators whose results are values of their first operand: both have one grid."""
_COMPUTES = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}
)
"""Operators that ONNX Runtime computes on integers of different grids."""
_LISTS = frozenset({"Add", "Mul", "Concat"})
"""Operators all of whose operands are rounded; of others it is the first."""


@dataclass(frozen=True, slots=True)
class Product:
    """A node that multiplies a computed value by a constant weight."""

    node: ir.Node
    axis: int
    """Axis of the weight that counts the outputs."""

    @property
    def name(self) -> str:
        """The node's name, or that of its result."""
        return self.node.name or str(self.node.outputs[0].name)

    @property
    def source(self) -> ir.Value:
        """The value that is multiplied."""
        return _operand(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        """The constant."""
        return _operand(self.node, 1)

    @property
    def result(self) -> ir.Value:
        """The value behind the clipping at its end, if nothing else reads what is clipped."""
        value = self.node.outputs[0]
        readers = list(value.uses())
        if len(readers) != 1 or value.is_graph_output():
            return value
        reader = readers[0].node
        is_clip = reader.op_type in _CLIPS and reader.graph is self.node.graph
        return reader.outputs[0] if is_clip else value


def float_products(model: ir.Model) -> tuple[Product, ...]:
    """Return the products of a graph that have a constant weight in FP32, in the graph's order."""
    products = (_product(node) for node in model.graph if node.op_type in PRODUCTS)
    return tuple(product for product in products if product is not None)


def _product(node: ir.Node) -> Product | None:
    source, weight = node.inputs[0], node.inputs[1]
    if node.domain or source is None or weight is None or not weight.is_initializer():
        return None
    if weight.dtype != ir.DataType.FLOAT or weight.const_value is None:
        return None
    if constant_array(source) is not None or weight.const_value.size == 0:
        return None
    rank = len(weight.const_value.shape)
    if node.op_type == "Conv":
        return Product(node, 0)
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if rank != 2 or scaled or node.attributes.get_int("transA", 0) != 0:
        return None
    return Product(node, 0 if node.attributes.get_int("transB", 0) else 1)


@dataclass(frozen=True, slots=True)
class RoundedValue:
    """A value that is rounded."""

    value: ir.Value
    grid_of: ir.Value
    """The value whose grid it has: itself, or the one that it was moved from."""
    readers: tuple[tuple[ir.Node, int], ...]
    """Nodes that read the rounded value, and the positions of the operand; others read the value as
    it is."""
    is_output: bool = False
    """True if the rounded value is an output of the graph."""


def rounded_values(products: Sequence[Product], target: Target) -> tuple[RoundedValue, ...]:
    """Return the values to round for these products to multiply integers.

    For TensorRT they are the operands of products, which it needs alone.
    """
    if target == "onnxruntime":
        return _Regions(products).values()
    readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for product in products:
        readers.setdefault(product.source, []).append((product.node, 0))
    return tuple(RoundedValue(value, value, tuple(nodes)) for value, nodes in readers.items())


class _Regions:
    """Rounded values with the operators between them that can compute integers."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._products = {product.node for product in products}
        sources = [product.source for product in products]
        results = [product.result for product in products if product.node.op_type == "Conv"]
        self._computed = set(results)
        """Values that an integer kernel computes."""
        self._rounded = dict.fromkeys([*sources, *results])
        self._joined: dict[ir.Node, bool] = {}

    def values(self) -> tuple[RoundedValue, ...]:
        pending = list(self._rounded)
        while pending:
            value = pending.pop()
            node = _producer_before_clip(value)
            if node is None or not self._joins(node):
                continue
            self._computed.update((value, *node.outputs))
            for operand in _rounded_operands(node):
                if operand not in self._rounded and not self._is_gate(operand):
                    self._rounded[operand] = None
                    pending.append(operand)
        return tuple(self._describe(value) for value in self._rounded)

    def _describe(self, value: ir.Value) -> RoundedValue:
        is_computed = value in self._computed
        readers = tuple(
            (node, index)
            for node, index in value.uses()
            if is_computed or self._reads_integers(node, index)
        )
        return RoundedValue(
            value, self._grid_of(value), readers, is_computed and value.is_graph_output()
        )

    def _reads_integers(self, node: ir.Node, index: int) -> bool:
        if node in self._products:
            return index == 0
        return bool(self._joined.get(node)) and _is_rounded_operand(node, index)

    def _joins(self, node: ir.Node) -> bool:
        """Return True if a node can compute integers, since all its operands are rounded anyway."""
        if node not in self._joined:
            self._joined[node] = False  # while its operands are looked at
            self._joined[node] = self._can_join(node)
        return self._joined[node]

    def _is_gate(self, value: ir.Value) -> bool:
        """Return True for a hard sigmoid of a rounded value, which has the integers of its operand.

        See ``integer_gates``.
        """
        node = value.producer()
        if node is None or node.op_type != "HardSigmoid" or node.domain:
            return False
        source = _operand(node, 0)
        return source in self._rounded and gate_start(source) is not None

    def _can_join(self, node: ir.Node) -> bool:
        if node.domain or node.op_type not in _MOVES | _COMPUTES or not _has_integer_form(node):
            return False
        operands = list(_rounded_operands(node))
        return bool(operands) and all(self._is_rounded(value) for value in operands)

    def _is_rounded(self, value: ir.Value) -> bool:
        producer = _producer_before_clip(value)
        is_joined = producer is not None and self._joins(producer)
        return value in self._rounded or is_joined or self._is_gate(value)

    def _grid_of(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        while node is not None and node.op_type in _MOVES and self._joined.get(node):
            value = _operand(node, 0)
            node = value.producer()
        return value


def _producer_before_clip(value: ir.Value) -> ir.Node | None:
    """Return the node that computes a value, before the clipping that rounding makes redundant."""
    node = value.producer()
    if node is None or node.op_type not in _CLIPS:
        return node
    clipped = _operand(node, 0)
    is_read_once = len(clipped.uses()) == 1 and not clipped.is_graph_output()
    return clipped.producer() if is_read_once else None


def _is_rounded_operand(node: ir.Node, index: int) -> bool:
    """Return True if an operand is rounded where the node computes integers."""
    return index == 0 or node.op_type in _LISTS


def _rounded_operands(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the operands that are rounded where the node computes integers."""
    for index, value in enumerate(node.inputs):
        if value is not None and _is_rounded_operand(node, index):
            yield value


def _has_integer_form(node: ir.Node) -> bool:
    """Return True if ONNX Runtime has an integer kernel for a node."""
    if any(value.dtype != ir.DataType.FLOAT for value in _rounded_operands(node)):
        return False
    if node.op_type == "MaxPool":
        # Its kernel for integers is fast behind a convolution alone, which leaves channels last.
        producer = _producer_before_clip(_operand(node, 0))
        return producer is None or producer.op_type != "Mul"
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return not any(constant_array(value) is not None for value in _rounded_operands(node))


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # noqa: S101 - the operators require it
    return value
