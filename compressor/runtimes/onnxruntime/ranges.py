"""Values inside a graph, observed in ONNX Runtime on real samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from compressor.data.contract import Batch
from compressor.graphs.values import Array, describe_output
from compressor.runtimes.onnxruntime.observation import open_graph, run_graph

_SUFFIX = ".magnitude"


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
    largest = np.zeros(len(values))
    for magnitudes in _measure(model, values, batches, "ReduceMax"):
        largest = np.maximum(largest, magnitudes)
    return dict(zip(values, largest.tolist(), strict=True))


def smallest_magnitudes(
    model: ir.Model, names: Iterable[str], batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the smallest magnitude of each value; arguments as ``measure_magnitudes``."""
    values = list(names)
    smallest = np.full(len(values), np.inf)
    for magnitudes in _measure(model, values, batches, "ReduceMin") if values else ():
        smallest = np.minimum(smallest, magnitudes)
    return dict(zip(values, smallest.tolist(), strict=True))


def _measure(
    model: ir.Model, names: Sequence[str], batches: Iterable[Batch], operator: str
) -> Iterator[Array]:
    """Yield the reduced magnitudes of values, float64 in the order of the names, by batch."""
    outputs = [name + _SUFFIX for name in names]
    session = open_graph(_with_reductions(model, names, operator), optimize=False)
    for feeds in batches:
        yield np.asarray([float(result) for result in run_graph(session, outputs, feeds)])


def _with_reductions(model: ir.Model, names: Sequence[str], operator: str) -> ir.Model:
    """Return a copy of a graph that outputs the reduced magnitude of each value, too."""
    observed = model.clone()
    graph = observed.graph
    values = {value.name: value for node in graph for value in node.outputs}
    values |= {value.name: value for value in graph.inputs}
    for name in names:
        magnitude = ir.node("Abs", [values[name]])
        value = describe_output(magnitude, f"{name}.absolute", ir.DataType.FLOAT, None)
        reduction = ir.node(operator, [value], {"keepdims": 0})
        producer = values[name].producer()
        if producer is None:
            graph.extend([magnitude, reduction])
        else:
            graph.insert_after(producer, [magnitude, reduction])
        shape = ir.Shape([])
        graph.outputs.append(describe_output(reduction, name + _SUFFIX, ir.DataType.FLOAT, shape))
    return observed
