"""The products and other layers that a config quantizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
from onnxscript import ir

from compressor.config.discovery import closest
from compressor.errors import NumericalError, RequirementError
from compressor.graphs.embeddings import embedding_tables
from compressor.graphs.integer_regions import PRODUCTS, Product, float_products
from compressor.graphs.values import constant_array
from passes.optimize_onnx.config import OptimizeOnnxConfig
from passes.optimize_onnx.weight_layers import weight_layers

_MULTIPLYING = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
)


def select_products(config: OptimizeOnnxConfig, graph: ir.Model) -> tuple[Product, ...]:
    """Return the products with constant weights that the config quantizes.

    Raises:
        RequirementError: there are none, or a pattern of `ignore` matches none.
    """
    products = float_products(graph)
    if config.precision == "int4":
        products = tuple(product for product in products if product.node.op_type != "Conv")
    layers = weight_layers(config, graph)
    if not products and not layers:
        what = "matrix product" if config.precision == "int4" else "convolution or matrix product"
        inner = [node.op_type for node in graph.graph.all_nodes() if node.graph is not graph.graph]
        where = " outside of its branches and loops" if _MULTIPLYING & set(inner) else ""
        raise RequirementError(
            f"the graph has no {what} with a constant weight in FP32{where}",
            remedy="set `precision: fp16`, or `int8` for convolutions"
            if config.precision == "int4"
            else "set `precision: fp16`",
        )
    names = [*(product.name for product in products), *layers]
    tables = [str(value.name) for value in embedding_tables(graph)] if config.stores_tables else []
    unmatched = [
        pattern
        for pattern in config.ignore
        if not any(fnmatchcase(name, pattern) for name in (*names, *tables))
    ]
    if unmatched:
        near = [name for pattern in unmatched if (name := closest(pattern.rstrip("*"), names))]
        raise RequirementError(
            f"`ignore` matches no product of this graph: {', '.join(unmatched)}",
            remedy=f"did you mean {', '.join(near)}?"
            if near
            else f"its products are {', '.join(names)}",
        )
    chosen = [name for name in names if not is_ignored(config, name)]
    if not chosen:
        raise RequirementError("`ignore` leaves no product to quantize", remedy="shorten it")
    return tuple(product for product in products if product.name in chosen)


def check_weights(config: OptimizeOnnxConfig, graph: ir.Model, products: Sequence[Product]) -> None:
    """Check that the weights that become integers are finite: integers have no NaN.

    Raises:
        NumericalError: some are not; the message names each.
    """
    weights = [(product.name, product.weight) for product in products]
    weights += [
        (name, value)
        for name, node in weight_layers(config, graph).items()
        if not is_ignored(config, name)
        for value in node.inputs[1:]
        if value is not None and value.dtype == ir.DataType.FLOAT
    ]
    damaged = {
        name: None
        for name, value in weights
        if (array := constant_array(value)) is not None
        and not np.isfinite(array.sum(dtype=np.float64))
    }
    if damaged:
        remedy = "export the model from a checkpoint that is not damaged"
        if len(damaged) < len({name for name, _ in weights}):
            remedy += f", or keep these products in float: `ignore: [{', '.join(damaged)}]`"
        raise NumericalError(f"weights are NaN or infinite in {', '.join(damaged)}", remedy=remedy)


def is_ignored(config: OptimizeOnnxConfig, name: str) -> bool:
    """Return True if a layer of this name stays in float."""
    return any(fnmatchcase(name, pattern) for pattern in config.ignore)


def float_operators(
    graph: ir.Model, products: Sequence[Product], layers: Sequence[ir.Node] = ()
) -> dict[str, int]:
    """Return the operators that multiply and have no integer form here, with their number.

    They are recurrent layers but LSTM in ONNX Runtime, transposed convolutions, products of two
    computed values, and all that lies in subgraphs.
    """
    nodes = {*(product.node for product in products)}
    nodes |= {node for node in layers if node.op_type == "LSTM"}
    return _count(node for node in _multiplying(graph) if node not in nodes)


def float_weights(
    graph: ir.Model, products: Sequence[Product], layers: Sequence[ir.Node] = ()
) -> dict[str, int]:
    """Return the operators whose weights are not stored as integers, with their number."""
    nodes = {*(product.node for product in products), *layers}
    return _count(
        node
        for node in _multiplying(graph)
        if node not in nodes and (node.op_type not in PRODUCTS or _has_weight(node))
    )


def _multiplying(graph: ir.Model) -> Iterator[ir.Node]:
    return (node for node in graph.graph.all_nodes() if node.op_type in _MULTIPLYING)


def _count(nodes: Iterable[ir.Node]) -> dict[str, int]:
    return dict(sorted(Counter(node.op_type for node in nodes).items()))


def branch_products(graph: ir.Model) -> dict[str, int]:
    """Return nodes with subgraphs, and the number of products with constant weights inside.

    They are left alone. Nodes without such products are left out.
    """
    counts = {}
    for node in graph.graph:
        inner = [each for subgraph in _subgraphs(node) for each in subgraph.all_nodes()]
        number = sum(_has_weight(each) for each in inner)
        if number:
            counts[f"{node.op_type} {node.name or node.outputs[0].name}"] = number
    return counts


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _has_weight(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type in PRODUCTS and len(node.inputs) > 1 else None
    while weight is not None and (producer := weight.producer()) is not None:
        if producer.op_type == "Constant":
            return True
        if producer.op_type not in {"Identity", "Transpose"}:
            return False
        weight = producer.inputs[0]
    return weight is not None and weight.const_value is not None
