"""Use of integer arithmetic in a profiled graph, and reasons why it is not faster."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.runtimes.onnxruntime.profile import NodeProfile

_ROUNDINGS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_OVERHEAD_MS = 0.02
"""Below this time per node, the call of the kernel takes longer than its work."""
_MIN_INTENSITY = 4.0
"""MACs per byte moved, below which memory bounds the time and not arithmetic (roofline model,
Williams et al. 2009). A core does about 30 FP32 MACs in the time it reads a byte from memory, and
reads more from a cache."""
_MIN_SHARE = 0.15
"""Share of the time from which a reason is reported."""


def integer_weight_share(nodes: Sequence[NodeProfile]) -> float | None:
    """Return the share of weight values that integer kernels multiply; None without weights."""
    total = sum(node.weights for node in nodes)
    return sum(node.weights for node in nodes if node.integer) / total if total else None


def integer_mac_share(nodes: Sequence[NodeProfile]) -> float | None:
    """Return the share of MACs that integer kernels do, products of activations included."""
    total = sum(node.macs for node in nodes)
    return sum(node.macs for node in nodes if node.integer) / total if total else None


def slowdown_reasons(nodes: Sequence[NodeProfile]) -> list[str]:
    """Return what keeps a compressed graph from being faster, the largest share of time first."""
    total = sum(node.milliseconds for node in nodes) or 1.0
    reasons = [
        f"{share:.0%} of the time: {reason}"
        for share, reason in sorted(_shares(nodes, total), reverse=True)
        if share >= _MIN_SHARE
    ]
    if nodes and median(node.milliseconds for node in nodes) < _OVERHEAD_MS:
        reasons.append(
            f"shapes too small: half of the {len(nodes)} operators take less than "
            f"{1000 * _OVERHEAD_MS:.0f} µs each"
        )
    return reasons


def _shares(nodes: Sequence[NodeProfile], total: float) -> list[tuple[float, str]]:
    """Return reasons with their shares of the total time in milliseconds."""
    products = [node for node in nodes if node.macs]
    float_weights = [node for node in products if node.weights and not node.integer]
    float_activations = [node for node in products if not node.weights and not node.integer]
    roundings = [node for node in nodes if node.operator in _ROUNDINGS]
    elementwise = [node for node in nodes if not node.macs and node.operator not in _ROUNDINGS]
    memory_bound = [node for node in products if node.macs < _MIN_INTENSITY * node.bytes]
    return [
        (
            _milliseconds(float_weights) / total,
            f"{len(float_weights)} operators with weights compute in float "
            f"({_slowest_names(float_weights)})",
        ),
        (
            _milliseconds(float_activations) / total,
            "products of two activations compute in float",
        ),
        (
            _milliseconds(roundings) / total,
            f"{len(roundings)} conversions between float and integers remain",
        ),
        (
            _milliseconds(elementwise) / total,
            "operators without products, which integers do not make faster",
        ),
        (
            _milliseconds(memory_bound) / total,
            f"memory-bound: fewer than {_MIN_INTENSITY:g} multiply-accumulates per byte moved",
        ),
    ]


def _milliseconds(nodes: Sequence[NodeProfile]) -> float:
    return sum(node.milliseconds for node in nodes)


def _slowest_names(nodes: Sequence[NodeProfile]) -> str:
    slowest = sorted(nodes, key=lambda node: -node.milliseconds)[:3]
    return ", ".join(f"{node.operator} {node.name}" for node in slowest)
