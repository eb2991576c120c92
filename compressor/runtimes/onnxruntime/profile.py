"""What ONNX Runtime spends its time on: its own profile, beside the graph that it makes of a file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import ModelError
from compressor.graphs.files import MODEL
from compressor.runtimes.onnxruntime.inference import ERRORS, SILENT
from compressor.runtimes.onnxruntime.integer_kernels import FLOAT, INTEGER
from compressor.runtimes.onnxruntime.session import OnnxSession
from compressor.runtimes.session import match_inputs

_WARMUP = 3
_SUFFIX = "_kernel_time"
_WEIGHT_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}  # among the inputs; 1 of all others
_PACKED, _ROUNDED = (
    "MatMulNBits",
    4,
)  # its accuracy_level that multiplies integers; others unpack the weights
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
    """Whether it multiplies integers."""
    macs: int
    """Multiply-accumulates; 0 of what does not multiply matrices or filters."""
    weights: int
    """Values of its weight; 0 where both factors are activations."""
    bytes: int
    """Of activations and weights that it reads and writes."""


def profile(folder: Path, batch: Batch, threads: int, runs: int = 20) -> tuple[NodeProfile, ...]:
    """Run ``model.onnx`` some times under ONNX Runtime's profiler.

    Raises:
        ModelError: it cannot be opened.
        DataError: the batch does not fit it.
    """
    with OnnxSession(folder, threads, "cpu") as opened:
        feeds = opened.completed(match_inputs(batch, opened.inputs))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SILENT
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as temporary:
        options.optimized_model_filepath = str(Path(temporary) / MODEL)
        options.profile_file_prefix = str(Path(temporary) / "profile")
        try:
            session = onnxruntime.InferenceSession(
                str(folder / MODEL), options, providers=["CPUExecutionProvider"]
            )
            for _ in range(_WARMUP + runs):
                session.run(None, feeds)
        except ERRORS as error:
            raise ModelError(
                f"ONNX Runtime cannot run {folder / MODEL}: {str(error).splitlines()[0]}"
            ) from error
        events = json.loads(Path(session.end_profiling()).read_bytes())
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return tuple(_nodes(graph, [event for event in events if event.get("cat") == "Node"]))


def _nodes(graph: onnx.GraphProto, events: list[dict[str, Any]]) -> Iterator[NodeProfile]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:  # a weight that is still dequantized when it runs is one all the same
        if node.op_type in {"DequantizeLinear", "Transpose"} and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    nodes = {node.name: node for node in graph.node}
    timed: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        name = event["name"]
        if name.endswith(_SUFFIX):
            timed.setdefault(name.removesuffix(_SUFFIX), []).append(event)
    for name, found in timed.items():
        last = found[-1]["args"]
        operator = last["op_name"]
        outputs, inputs = _shapes(last["output_type_shape"]), _shapes(last["input_type_shape"])
        multiplies = operator in INTEGER or operator in FLOAT
        at = _WEIGHT_AT.get(operator, 1)
        node = nodes.get(name)
        weight = (
            shapes.get(node.input[at])
            if multiplies and node is not None and len(node.input) > at
            else None
        )
        integer = operator in INTEGER
        if operator == _PACKED and node is not None:
            told = {one.name: one.i for one in node.attribute}
            multiplies, weight, integer = (
                True,
                (told["K"], told["N"]),
                told.get("accuracy_level") == _ROUNDED,
            )
        yield NodeProfile(
            name=name,
            operator=operator,
            milliseconds=median(event["dur"] for event in found[_WARMUP:] or found) / 1e3,
            integer=integer,
            macs=_macs(operator, inputs, outputs, weight) if multiplies else 0,
            weights=math.prod(weight) if weight else 0,
            bytes=_moved(last),
        )


def _shapes(typed: list[dict[str, list[int]]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for one in typed for shape in one.values()]


def _macs(
    operator: str,
    inputs: list[tuple[int, ...]],
    outputs: list[tuple[int, ...]],
    weight: tuple[int, ...] | None,
) -> int:
    if not outputs or not inputs:
        return 0
    if "Conv" in operator:
        return math.prod(outputs[0]) * math.prod(weight[1:]) if weight else 0
    return math.prod(outputs[0]) * (inputs[0][-1] if inputs[0] else 1)


def _moved(event: dict[str, Any]) -> int:
    typed = [*event["input_type_shape"], *event["output_type_shape"]]
    told = sum(
        _BYTES.get(kind, 4) * math.prod(shape) for one in typed for kind, shape in one.items()
    )
    sizes: list[int] = [int(event.get(name, 0)) for name in ("parameter_size", "output_size")]
    return max(int(told), sum(sizes))
