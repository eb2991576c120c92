"""Whether few bits are computed with, and where they are not faster, why: from the profile of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.runtimes.onnxruntime.profile import NodeProfile

_ROUNDINGS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_OVERHEAD_MS = 0.02
"""A node of so little time is mostly the call of its kernel."""
_INTENSITY = 4.0
"""Multiply-accumulates for each byte moved, below which memory sets the time and not arithmetic (the roofline of Williams et al.
2009): a core does some 30 of them in FP32 for each byte that it gets from memory, and more of what lies in a cache."""
_MUCH = 0.15
"""A share of the time that is worth telling."""


def low_precision_weights(nodes: Sequence[NodeProfile]) -> float | None:
    """Share of weight values that integer kernels multiply; None where there are no weights."""
    total = sum(node.weights for node in nodes)
    return sum(node.weights for node in nodes if node.integer) / total if total else None


def low_precision_macs(nodes: Sequence[NodeProfile]) -> float | None:
    """Share of multiply-accumulates that integer kernels do, those of two activations included."""
    total = sum(node.macs for node in nodes)
    return sum(node.macs for node in nodes if node.integer) / total if total else None


def slowdown_reasons(nodes: Sequence[NodeProfile]) -> list[str]:
    """What keeps a compressed graph from being fast, that which takes most time first."""
    total = sum(node.milliseconds for node in nodes) or 1.0
    multiplying = [node for node in nodes if node.macs]
    weighted = [node for node in multiplying if node.weights and not node.integer]
    found = [
        (
            _time(weighted) / total,
            f"{len(weighted)} operators with weights are left in float ({_names(weighted)})",
        ),
        (
            _time([node for node in multiplying if not node.weights and not node.integer]) / total,
            "products of two activations are in float",
        ),
        (
            _time([node for node in nodes if node.operator in _ROUNDINGS]) / total,
            f"{sum(node.operator in _ROUNDINGS for node in nodes)} roundings between float and integers are left",
        ),
        (
            _time([node for node in nodes if not node.macs and node.operator not in _ROUNDINGS])
            / total,
            "operators that multiply nothing, which few bits do not make faster",
        ),
        (
            _time([node for node in multiplying if node.macs < _INTENSITY * node.bytes]) / total,
            f"memory-bound: fewer than {_INTENSITY:g} multiply-accumulates for each byte that is moved",
        ),
    ]
    told = [
        f"{share:.0%} of the time: {what}"
        for share, what in sorted(found, reverse=True)
        if share >= _MUCH
    ]
    if nodes and median(node.milliseconds for node in nodes) < _OVERHEAD_MS:
        told.append(
            f"shapes too small: half of the {len(nodes)} operators take less than {1000 * _OVERHEAD_MS:.0f} µs each"
        )
    return told


def _time(nodes: Sequence[NodeProfile]) -> float:
    return sum(node.milliseconds for node in nodes)


def _names(nodes: Sequence[NodeProfile]) -> str:
    slowest = sorted(nodes, key=lambda node: -node.milliseconds)[:3]
    return ", ".join(f"{node.operator} {node.name}" for node in slowest)
