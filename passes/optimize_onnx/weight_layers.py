"""Layers whose weights alone are known to be integers: LSTM, and transposed convolutions.

Values need no ranges: an LSTM finds its own in each run, and a transposed convolution has none.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxscript import ir

from compressor.graphs.recurrent import WeightScales, float_lstms, store_integer_lstm
from compressor.graphs.transposed_convolutions import (
    float_transposed_convolutions,
    store_integer_kernel,
)
from passes.optimize_onnx.config import OptimizeOnnxConfig

_KINDS: tuple[
    tuple[
        Callable[[ir.Model], dict[str, ir.Node]], Callable[[ir.Model, ir.Node, WeightScales], None]
    ],
    ...,
] = (
    (float_lstms, store_integer_lstm),
    (float_transposed_convolutions, store_integer_kernel),
)


def weight_layers(config: OptimizeOnnxConfig, graph: ir.Model) -> dict[str, ir.Node]:
    """Return the layers of a graph that the config can store in INT8, by name."""
    if not config.stores_layers:
        return {}
    return {name: node for find, _ in _KINDS for name, node in find(graph).items()}


def store_layers(graph: ir.Model, names: set[str], scales: WeightScales) -> None:
    """Store the weights of the named layers as INT8, in place."""
    for find, store in _KINDS:
        for name, node in find(graph).items():
            if name in names:
                store(graph, node, scales)
