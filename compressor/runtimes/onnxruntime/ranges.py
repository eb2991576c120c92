"""Values inside a graph, observed in ONNX Runtime on real samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from compressor.data.contract import Batch
from compressor.errors import PassError
from compressor.runtimes.onnxruntime.inference import CPU, ERRORS, first_line, session_options

_SUFFIX = ".largest"


def measure_magnitudes(
    model: onnx.ModelProto, names: Iterable[str], batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the largest magnitude of each value over all batches.

    Infinity and NaN are returned where they occur. The graph itself reduces each value to one
    number, so that a run needs no more memory than without.

    Args:
        model: a graph in FP32, without external data.
        names: names of FP32 values in the graph.
        batches: feeds of the graph's inputs.

    Raises:
        PassError: ONNX Runtime cannot run the graph.
    """
    values = list(names)
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.node[:]
    observed.graph.node.extend(_nodes_with_reductions(model.graph, set(values)))
    for name in values:
        observed.graph.output.append(
            helper.make_tensor_value_info(name + _SUFFIX, onnx.TensorProto.FLOAT, [])
        )
    outputs = [name + _SUFFIX for name in values]
    largest = np.zeros(len(values))
    try:
        session = onnxruntime.InferenceSession(
            observed.SerializeToString(),
            session_options(optimize=False, frees_early=True),
            providers=CPU,
        )
        for feeds in batches:
            magnitudes = [float(result) for result in session.run(outputs, feeds)]
            largest = np.maximum(largest, np.asarray(magnitudes))
    except ERRORS as error:
        raise PassError(
            f"ONNX Runtime cannot run the graph to measure its ranges: {first_line(error)}"
        ) from error
    return dict(zip(values, largest.tolist(), strict=True))


def _nodes_with_reductions(graph: onnx.GraphProto, names: set[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph, each followed by the reductions of what it computes."""
    for value in graph.input:
        if value.name in names:
            yield from _reduction(value.name)
    for node in graph.node:
        yield node
        for name in node.output:
            if name in names:
                yield from _reduction(name)


def _reduction(name: str) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Abs", [name], [f"{name}.magnitude"])
    yield helper.make_node("ReduceMax", [f"{name}.magnitude"], [name + _SUFFIX], keepdims=0)
