"""Magnitudes from which on an activation no longer changes: integers need not reach further."""

from __future__ import annotations

import math

import onnx_ir as ir

from compressor.graphs.integer_gates import gate_ends

Limits = tuple[float, float]
_ALL: Limits = (-math.inf, math.inf)
_SIGMOID_END = 10.0
"""A sigmoid is within 5e-5 of its limit from here on, and x · sigmoid(x) within 5e-4."""


def activation_limits(value: ir.Value) -> Limits:
    """Return the smallest and the largest magnitude of a value that its readers tell apart.

    The readers are sigmoids, and products of the value with its own sigmoid (SiLU, hard swish), of
    which all values below an end give 0. The limits of any other value are infinite.
    """
    if value.is_graph_output():
        return _ALL
    readers = [node for node, _ in value.uses()]
    limits = [_reader_limits(value, node) for node in readers]
    if not limits:
        return _ALL
    return min(low for low, _ in limits), max(high for _, high in limits)


def _reader_limits(value: ir.Value, node: ir.Node) -> Limits:
    if node.domain or node.graph is not _graph_of(value):
        return _ALL
    if node.op_type in {"Sigmoid", "HardSigmoid"}:
        return _ends(node)
    if node.op_type == "Mul":
        return _gated_limits(value, node)
    return _ALL


def _gated_limits(value: ir.Value, product: ir.Node) -> Limits:
    """Return the limits of x in x · sigmoid(x)."""
    gates = [
        operand.producer()
        for operand in product.inputs
        if operand is not None and operand is not value
    ]
    gate = gates[0] if len(gates) == 1 else None
    is_own = gate is not None and gate.op_type in {"Sigmoid", "HardSigmoid"}
    if gate is None or not is_own or gate.inputs[0] is not value:
        return _ALL
    return _ends(gate)[0], math.inf


def _ends(node: ir.Node) -> Limits:
    """Return where a sigmoid reaches 0 and 1."""
    if node.op_type == "Sigmoid":
        return -_SIGMOID_END, _SIGMOID_END
    return gate_ends(node) or _ALL


def _graph_of(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return value.graph if producer is None else producer.graph
