"""Time, MACs and bytes of each node, from ONNX Runtime's profiler and its optimized graph."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import ModelError
from compressor.graphs.files import MODEL
from compressor.runtimes.onnxruntime.inference import CPU, ERRORS, run_limited, session_options
from compressor.runtimes.onnxruntime.integer_kernels import FLOAT, INTEGER
from compressor.runtimes.onnxruntime.remedies import first_line, remedy_of
from compressor.runtimes.onnxruntime.session import OnnxSession
from compressor.runtimes.session import match_inputs

Shape = tuple[int, ...]
_WARMUP_RUNS = 3
_SUFFIX = "_kernel_time"
_WEIGHT_INPUT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Index of the weight among the inputs; 1 for all other operators."""
_PACKED = "MatMulNBits"
_INTEGER_ACCURACY_LEVEL = 4
"""The accuracy_level of MatMulNBits that multiplies integers; others unpack the weights."""
_BYTES = {
    "float": 4,
    "float16": 2,
    "int8": 1,
    "uint8": 1,
    "int64": 8,
    "int32": 4,
    "bool": 1,
    "double": 8,
}


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """One node of the optimized graph."""

    name: str
    operator: str
    milliseconds: float
    """Median over the runs."""
    integer: bool
    """True if it multiplies integers."""
    macs: int
    """Multiply-accumulates; 0 for operators other than matrix products and convolutions."""
    weights: int
    """Values in its weight; 0 if both factors are activations."""
    bytes: int
    """Bytes of activations and weights that it reads and writes."""


@dataclass(frozen=True, slots=True)
class _Product:
    """A node that multiplies."""

    integer: bool
    """True if it multiplies integers."""
    weight_shape: Shape | None
    """None if both factors are activations."""


def profile(folder: Path, batch: Batch, threads: int, runs: int = 20) -> tuple[NodeProfile, ...]:
    """Run ``model.onnx`` under ONNX Runtime's profiler.

    Args:
        folder: the model's folder.
        batch: arrays for the model's inputs.
        threads: threads of one operator.
        runs: number of measured runs.

    Raises:
        ModelError: the graph cannot be opened or run.
        DataError: the batch does not fit the model's inputs.
    """
    with OnnxSession(folder, threads, "cpu") as session:
        feeds = session.complete_feeds(match_inputs(batch, session.inputs))
    options = session_options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as temporary:
        options.optimized_model_filepath = str(Path(temporary) / MODEL)
        options.profile_file_prefix = str(Path(temporary) / "profile")
        try:
            profiled = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=CPU)
            for _ in range(_WARMUP_RUNS + runs):
                run_limited(profiled, None, feeds)
        except ERRORS as error:
            raise ModelError(
                f"ONNX Runtime cannot run {folder / MODEL}: {first_line(error)}",
                remedy=remedy_of(error),
            ) from error
        events = json.loads(Path(profiled.end_profiling()).read_bytes())
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return tuple(_node_profiles(graph, [event for event in events if event.get("cat") == "Node"]))


def _node_profiles(graph: onnx.GraphProto, events: list[dict[str, Any]]) -> Iterator[NodeProfile]:
    weight_shapes = _weight_shapes(graph)
    nodes = {node.name: node for node in graph.node}
    events_by_node: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        name = event["name"]
        if name.endswith(_SUFFIX):
            events_by_node.setdefault(name.removesuffix(_SUFFIX), []).append(event)
    for name, node_events in events_by_node.items():
        details = node_events[-1]["args"]
        operator = details["op_name"]
        product = _product(operator, nodes.get(name), weight_shapes)
        weight_shape = product.weight_shape if product else None
        measured = node_events[_WARMUP_RUNS:] or node_events
        yield NodeProfile(
            name=name,
            operator=operator,
            milliseconds=median(event["dur"] for event in measured) / 1e3,
            integer=operator in INTEGER if product is None else product.integer,
            macs=_macs(operator, details, weight_shape) if product else 0,
            weights=math.prod(weight_shape) if weight_shape else 0,
            bytes=_moved_bytes(details),
        )


def _weight_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Return the shapes of constants, and of constants dequantized or transposed at run time."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in {"DequantizeLinear", "Transpose"} and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes


def _product(
    operator: str, node: onnx.NodeProto | None, weight_shapes: dict[str, Shape]
) -> _Product | None:
    """Return how a node multiplies; None for operators that are no products."""
    if operator == _PACKED and node is not None:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        integer = attributes.get("accuracy_level") == _INTEGER_ACCURACY_LEVEL
        return _Product(integer, (attributes["K"], attributes["N"]))
    if operator not in INTEGER and operator not in FLOAT:
        return None
    index = _WEIGHT_INPUT.get(operator, 1)
    has_weight = node is not None and len(node.input) > index
    weight_shape = weight_shapes.get(node.input[index]) if node is not None and has_weight else None
    return _Product(operator in INTEGER, weight_shape)


def _macs(operator: str, details: dict[str, Any], weight_shape: Shape | None) -> int:
    outputs = _shapes(details["output_type_shape"])
    inputs = _shapes(details["input_type_shape"])
    if not outputs or not inputs:
        return 0
    if "Conv" in operator:
        return math.prod(outputs[0]) * math.prod(weight_shape[1:]) if weight_shape else 0
    return math.prod(outputs[0]) * (inputs[0][-1] if inputs[0] else 1)


def _shapes(typed_shapes: Sequence[dict[str, list[int]]]) -> list[Shape]:
    return [tuple(shape) for entry in typed_shapes for shape in entry.values()]


def _moved_bytes(details: dict[str, Any]) -> int:
    """Return the bytes that a node reads and writes, by shapes or by the profiler's own sizes."""
    typed_shapes = [*details["input_type_shape"], *details["output_type_shape"]]
    by_shape = sum(
        _BYTES.get(dtype, 4) * math.prod(shape)
        for entry in typed_shapes
        for dtype, shape in entry.items()
    )
    by_profiler = sum(int(details.get(name, 0)) for name in ("parameter_size", "output_size"))
    return max(int(by_shape), by_profiler)
