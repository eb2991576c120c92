"""Latency of single operators, measured on this machine and kept in a table.

Latency is not proportional to arithmetic: 56 channels can be slower than 64. The table holds the
time of every shape that the search has needed. It is saved in the cache, so that later runs on the
same machine make the same choices without measuring again.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.engine.machine import tool_version
from passes.prune.allocation import Cost, Width
from passes.prune.config import LatencyConfig

_WARMUP_CALLS = 5


@dataclass(frozen=True, slots=True)
class Operator:
    """A convolution or matrix product of one shape."""

    kind: str
    """``conv1d``, ``conv2d`` or ``linear``."""
    input: tuple[int, ...]
    """Shape of the input: [batch, channels, …] of a convolution, [..., features] of a product."""
    weight: tuple[int, ...]
    """Shape of the weight, in PyTorch's layout."""
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def key(self) -> str:
        """The operator's key in the table's file."""
        shapes = " * ".join("x".join(map(str, sizes)) for sizes in (self.input, self.weight))
        return (
            f"{self.kind} {shapes} stride {self.stride} padding {self.padding} groups {self.groups}"
        )


EMPTY = Operator("linear", (1, 1), (1, 1))
"""An operator whose time is that of the call alone."""


class LatencyTable:
    """Time of one call of each operator; unknown operators are measured.

    Args:
        config: the runtime, its threads and the number of calls.
        cache: the folder that holds the table's file.
        note: called with a line if the file is damaged.
    """

    def __init__(self, config: LatencyConfig, cache: Path, note: Callable[[str], None]) -> None:
        self.config = config
        machine = f"{platform.machine()}-{platform.processor() or 'cpu'}".replace(" ", "-")
        self.version = tool_version("torch" if config.runtime == "torch" else "onnxruntime")
        name = f"{machine}-{config.runtime}-{self.version}-{config.threads}threads.json"
        self.file = cache / "latency" / name
        self.known = _read_table(self.file, note)
        self.used: dict[str, float] = {}
        """Milliseconds by key of the operators that were looked up."""

    def milliseconds(self, operator: Operator) -> float:
        """Return the time of an operator within a larger graph: without the call's overhead."""
        return max(0.0, self._call_milliseconds(operator) - self._call_milliseconds(EMPTY))

    def _call_milliseconds(self, operator: Operator) -> float:
        if operator.key not in self.known:
            self.known[operator.key] = measure_operator(operator, self.config)
        self.used[operator.key] = self.known[operator.key]
        return self.used[operator.key]

    def save(self) -> None:
        """Write the table to the cache.

        Raises:
            StorageError: the disk is full, or the cache cannot be written.
        """
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, json.dumps(self.known, indent=1, sort_keys=True).encode())


def _read_table(file: Path, note: Callable[[str], None]) -> dict[str, float]:
    """Return the times in a table's file; none if it is missing, or damaged, which is noted."""
    if not file.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, Annotated[float, Field(ge=0)]]).validate_json(
            file.read_bytes()
        )
    except ValidationError:
        note(f"the latency table {file} is damaged: its operators are measured again")
        return {}


def measure_operator(operator: Operator, config: LatencyConfig) -> float:
    """Return the time of one call in milliseconds: the lower quartile after a warm-up.

    The lower quartile is used because other load on the machine can only add time.
    """
    prepare = _prepare_torch if config.runtime == "torch" else _prepare_onnxruntime
    call = prepare(operator, config.threads)
    seconds = []
    with torch_threads(config.threads):
        for number in range(_WARMUP_CALLS + config.repeats):
            start = time.perf_counter()
            call()
            if number >= _WARMUP_CALLS:
                seconds.append(time.perf_counter() - start)
    return 1e3 * sorted(seconds)[len(seconds) // 4]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the number of torch's threads within the block, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare_torch(operator: Operator, _threads: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(sizes, generator=generator) for sizes in (operator.input, operator.weight)
    )

    def call() -> Tensor:
        with torch.inference_mode():
            if operator.kind == "linear":
                return nn.functional.linear(x, weight)
            convolve = nn.functional.conv1d if operator.kind == "conv1d" else nn.functional.conv2d
            return convolve(x, weight, None, operator.stride, operator.padding, 1, operator.groups)

    return call


def _prepare_onnxruntime(operator: Operator, threads: int) -> Callable[[], object]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weight = generator.standard_normal(operator.weight, dtype=np.float32)
    if operator.kind == "linear":
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = np.ascontiguousarray(weight.T)
    else:
        spatial_dims = len(operator.weight) - 2
        pads, strides = [operator.padding] * 2 * spatial_dims, [operator.stride] * spatial_dims
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], strides=strides, pads=pads, group=operator.groups
        )
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, operator.input)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"x": generator.standard_normal(operator.input, dtype=np.float32)}
    return lambda: session.run(None, feeds)


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """An operator of a model, and how often one forward pass calls it."""

    operator: Operator
    calls: int = 1


def trace_operators(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, OperatorCall]:
    """Run a model once and return its convolutions and matrix products by weight name.

    Convolutions whose padding is given by name (``"same"``) are left out.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv1d | nn.Conv2d) and isinstance(module.padding[0], int))
    }
    operators: dict[str, OperatorCall] = {}

    def record(name: str, layer_inputs: tuple[Any, ...]) -> None:
        key = f"{name}.weight"
        calls = operators[key].calls + 1 if key in operators else 1
        operators[key] = OperatorCall(_operator_of(layers[name], layer_inputs[0].shape), calls)

    with forward_hooks(model, layers, before=record), torch.no_grad():
        model(**inputs)
    return operators


def _operator_of(layer: nn.Module, input_shape: Sequence[int]) -> Operator:
    weight = tuple(layer.get_parameter("weight").shape)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        kind = "conv1d" if isinstance(layer, nn.Conv1d) else "conv2d"
        stride, padding = layer.stride[0], int(layer.padding[0])
        return Operator(kind, tuple(input_shape), weight, stride, padding, layer.groups)
    return Operator("linear", tuple(input_shape), weight)


def latency_cost(
    operators: Mapping[str, OperatorCall], widths: Sequence[Width], table: LatencyTable
) -> Cost:
    """Return the total time of all operators in milliseconds as a function of sizes.

    Args:
        operators: weight name to operator, as ``trace_operators`` returns them.
        widths: the widths that may be cut.
        table: the time of each operator.
    """
    cuts: dict[str, list[tuple[Width, int, int]]] = {}
    """Tensor name to (width, dimension, indices per unit of the width)."""
    for width in widths:
        for axis in width.axes:
            for cut in axis.cuts:
                indices_per_unit = width.axis_units(axis, 1) * cut.block * cut.segments
                cuts.setdefault(cut.tensor, []).append((width, cut.dim, indices_per_unit))
    layers = {
        f"{axis.stack}.{member}.": (width.label, axis.units)
        for width in widths
        for axis in width.axes
        if axis.stack
        for member in axis.members(range(axis.units))
    }

    def total(sizes: Mapping[str, int]) -> float:
        milliseconds = 0.0
        for name, call in operators.items():
            weight = list(call.operator.weight)
            for width, dim, indices_per_unit in cuts.get(name, ()):
                weight[dim] -= (width.units - sizes[width.label]) * indices_per_unit
            kept_share = 1.0
            for layer, (label, units) in layers.items():
                kept_share *= sizes[label] / units if name.startswith(layer) else 1.0
            resized = resize_operator(call.operator, tuple(weight))
            milliseconds += kept_share * call.calls * table.milliseconds(resized)
        return milliseconds

    return total


def resize_operator(operator: Operator, weight: tuple[int, ...]) -> Operator:
    """Return the operator with another shape of its weight; input channels and groups follow."""
    if operator.kind == "linear":
        return Operator("linear", (*operator.input[:-1], weight[1]), weight)
    groups = operator.groups  # of several, only whole ones are cut
    if groups > 1:
        groups = groups * weight[0] // operator.weight[0]
    input_shape = (operator.input[0], groups * weight[1], *operator.input[2:])
    return Operator(operator.kind, input_shape, weight, operator.stride, operator.padding, groups)
