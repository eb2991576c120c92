"""Values inside a graph, observed in ONNX Runtime on real samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from compressor.data.contract import Batch
from compressor.graphs.values import describe_output
from compressor.runtimes.onnxruntime.observation import open_graph, run_graph

_SUFFIX = ".largest"


def measure_magnitudes(
    model: ir.Model, names: Iterable[str], batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the largest magnitude of each value over all batches.

    Infinity and NaN are returned where they occur. The graph itself reduces each value to one
    number, so that a run needs no more memory than without.

    Args:
        model: a graph in FP32; it is not changed.
        names: names of FP32 values that are inputs of the main graph, or that its nodes compute.
        batches: feeds of the graph's inputs.

    Raises:
        PassError: ONNX Runtime cannot run the graph.
    """
    values = list(names)
    outputs = [name + _SUFFIX for name in values]
    largest = np.zeros(len(values))
    session = open_graph(_with_reductions(model, values), optimize=False)
    for feeds in batches:
        magnitudes = [float(result) for result in run_graph(session, outputs, feeds)]
        largest = np.maximum(largest, np.asarray(magnitudes))
    return dict(zip(values, largest.tolist(), strict=True))


def _with_reductions(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of a graph that outputs the largest magnitude of each value, too."""
    observed = model.clone()
    graph = observed.graph
    values = {value.name: value for node in graph for value in node.outputs}
    values |= {value.name: value for value in graph.inputs}
    for name in names:
        magnitude = ir.node("Abs", [values[name]])
        value = describe_output(magnitude, f"{name}.magnitude", ir.DataType.FLOAT, None)
        reduction = ir.node("ReduceMax", [value], {"keepdims": 0})
        producer = values[name].producer()
        if producer is None:
            graph.extend([magnitude, reduction])
        else:
            graph.insert_after(producer, [magnitude, reduction])
        shape = ir.Shape([])
        graph.outputs.append(describe_output(reduction, name + _SUFFIX, ir.DataType.FLOAT, shape))
    return observed
