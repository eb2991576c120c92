"""Layers that a converted graph shares with its parent, for `compare`.

Simplification fuses operators and keeps names of values: a value may hold a sum that it did not
hold before. So a layer is shared only if its values are equal on samples before anything is
rounded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnxscript import ir

from compressor.data.contract import Batch
from compressor.graphs.files import load_typed_model
from compressor.graphs.layer_names import encode_layer_inputs
from compressor.graphs.values import Array
from compressor.runtimes.layers import INPUTS_KEY
from compressor.runtimes.onnxruntime.layers import OnnxLayers
from compressor.runtimes.onnxruntime.observation import observe_values

_TOLERANCE = 1e-3
"""Relative difference of values that are sums of the same terms in another order."""


def shared_layers(parent: Path, prepared: ir.Model, feeds: Batch, threads: int) -> dict[str, str]:
    """Return the layers of a parent whose values the simplified graph has too, and what each reads.

    Args:
        parent: folder of the parent's graph.
        prepared: the simplified graph, in float.
        feeds: one batch of samples.
        threads: threads of one operator.
    """
    present = {str(value.name) for node in prepared.graph for value in node.outputs}
    present |= {str(value.name) for value in prepared.graph.inputs}
    reads = {
        layer: value
        for layer, value in OnnxLayers(parent, threads).reads.items()
        if layer in present and value in present
    }
    names = list(dict.fromkeys([*reads, *reads.values()]))
    before = _values(load_typed_model(parent), names, feeds, threads)
    after = _values(prepared, names, feeds, threads)
    equal = {name for name in names if _are_equal(before.get(name), after.get(name))}
    return {layer: value for layer, value in reads.items() if {layer, value} <= equal}


def name_layers(graph: ir.Model, layers: dict[str, str]) -> None:
    """Note the layers in the metadata of a converted graph, in place."""
    graph.metadata_props[INPUTS_KEY] = encode_layer_inputs(layers)


def _values(model: ir.Model, names: list[str], feeds: Batch, threads: int) -> dict[str, Array]:
    values: dict[str, Array] = {}

    def keep(name: str, array: Array, _: Batch) -> None:
        values[name] = array

    observe_values(model, names, [feeds], keep, threads)
    return values


def _are_equal(first: Array | None, second: Array | None) -> bool:
    if first is None or second is None or first.shape != second.shape:
        return False
    first, second = first.astype(np.float64), second.astype(np.float64)
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        return False
    return bool(np.linalg.norm(second - first) <= _TOLERANCE * np.linalg.norm(first))
