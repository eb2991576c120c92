"""How large the values inside a graph get, seen in ONNX Runtime on real samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from compressor.data.contract import Batch
from compressor.errors import PassError
from compressor.runtimes.onnxruntime.inference import ERRORS, SILENT

_SUFFIX = ".largest"


def measure_magnitudes(
    model: onnx.ModelProto, types: Iterable[str], batches: Iterable[Batch]
) -> dict[str, float]:
    """Value to its largest magnitude over all batches; inf where it was infinite, NaN where it was not a number.

    The graph reduces each value to one number itself, so that no more of it is in memory than without.

    Args:
        model: a graph in FP32, without external data.
        types: names of its FP32 values.
        batches: feeds of the graph's inputs.

    Raises:
        PassError: ONNX Runtime cannot run it.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = list(types)
    for name in names:
        watched.graph.node.extend(_reduction(name))
        watched.graph.output.append(
            helper.make_tensor_value_info(name + _SUFFIX, onnx.TensorProto.FLOAT, [])
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    largest = np.zeros(len(names))
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for feeds in batches:
            found = session.run([name + _SUFFIX for name in names], feeds)
            largest = np.maximum(largest, np.asarray([float(one) for one in found]))
    except ERRORS as error:
        raise PassError(
            f"ONNX Runtime cannot run the graph to see its ranges: {str(error).splitlines()[0]}"
        ) from error
    return dict(zip(names, largest.tolist(), strict=True))


def _reduction(name: str) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Abs", [name], [f"{name}.magnitude"])
    yield helper.make_node("ReduceMax", [f"{name}.magnitude"], [name + _SUFFIX], keepdims=0)
