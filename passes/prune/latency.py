"""What each layer costs in milliseconds at each width, measured on this machine, one operator at a time.

A model's time is not its arithmetic: 56 channels can be slower than 64. So a table holds the time of every shape that the
search asks for, and is kept in the cache: later runs on this machine choose alike, and at once.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.engine.machine import tool_version
from passes.prune.allocation import Width

_WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Operator:
    """A convolution or a matrix product of one shape."""

    kind: str
    """conv1d, conv2d or linear."""
    input: tuple[int, ...]
    """[N, channels, …] of a convolution, [..., features] of a product."""
    weight: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def key(self) -> str:
        """As it is named in the table's file."""
        sizes = ("x".join(map(str, sizes)) for sizes in (self.input, self.weight))
        return f"{self.kind} {' * '.join(sizes)} stride {self.stride} padding {self.padding} groups {self.groups}"


NOTHING = Operator("linear", (1, 1), (1, 1))
"""What takes no time but that of the call."""


class LatencyTable:
    """Operator to the milliseconds of one call; asks the machine for what it does not know yet."""

    def __init__(
        self, runtime: str, threads: int, repeats: int, cache: Path, note: Callable[[str], None]
    ) -> None:
        self.runtime, self.threads, self.repeats = runtime, threads, repeats
        machine = f"{platform.machine()}-{platform.processor() or 'cpu'}".replace(" ", "-")
        self.version = tool_version("torch" if runtime == "torch" else "onnxruntime")
        self.file = cache / "latency" / f"{machine}-{runtime}-{self.version}-{threads}threads.json"
        self.known = _read(self.file, note)
        self.used: dict[str, float] = {}
        """What was asked for."""

    def milliseconds(self, operator: Operator) -> float:
        """The time of one call inside a larger graph: less what calling the runtime takes by itself."""
        return max(0.0, self._measured(operator) - self._measured(NOTHING))

    def _measured(self, operator: Operator) -> float:
        if operator.key not in self.known:
            self.known[operator.key] = measured(operator, self.runtime, self.threads, self.repeats)
        self.used[operator.key] = self.known[operator.key]
        return self.used[operator.key]

    def save(self) -> None:
        """Into the cache, for the next run."""
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, json.dumps(self.known, indent=1, sort_keys=True).encode())


def _read(file: Path, note: Callable[[str], None]) -> dict[str, float]:
    """The times in a table's file; none where there is no such file, or, with a note, where it is damaged."""
    if not file.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, Annotated[float, Field(ge=0)]]).validate_json(
            file.read_bytes()
        )
    except ValidationError:
        note(f"the table of latencies {file} is damaged: its operators are measured anew")
        return {}


def measured(operator: Operator, runtime: str, threads: int, repeats: int) -> float:
    """The lower quartile of ``repeats`` calls after a warm-up, in milliseconds: what else the machine does only adds."""
    call = (_torch_call if runtime == "torch" else _onnxruntime_call)(operator, threads)
    times = []
    with torch_threads(threads):
        for number in range(_WARM_UP + repeats):
            start = time.perf_counter()
            call()
            if number >= _WARM_UP:
                times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[len(times) // 4]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch computes with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch_call(operator: Operator, _threads: int) -> Callable[[], object]:
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


def _onnxruntime_call(operator: Operator, threads: int) -> Callable[[], object]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weight = generator.standard_normal(operator.weight, dtype=np.float32)
    if operator.kind == "linear":
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = np.ascontiguousarray(weight.T)
    else:
        space = len(operator.weight) - 2
        pads, strides = [operator.padding] * 2 * space, [operator.stride] * space
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
    feed = {"x": generator.standard_normal(operator.input, dtype=np.float32)}
    return lambda: session.run(None, feed)


def operators_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, tuple[Operator, int]]:
    """Weight name to its operator, with the input's shape as one forward pass sees it, and how often it is called."""
    found: dict[str, tuple[Operator, int]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if isinstance(module, nn.Linear):
                operator = Operator("linear", tuple(given[0].shape), tuple(module.weight.shape))
            elif isinstance(module, nn.Conv1d | nn.Conv2d) and isinstance(module.padding[0], int):
                kind = "conv1d" if isinstance(module, nn.Conv1d) else "conv2d"
                shape, weight = tuple(given[0].shape), tuple(module.weight.shape)
                operator = Operator(
                    kind, shape, weight, module.stride[0], module.padding[0], module.groups
                )
            else:
                return
            key = f"{name}.weight"
            found[key] = (operator, found[key][1] + 1 if key in found else 1)

        return hook

    handles = [
        module.register_forward_pre_hook(remember(name)) for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def latency_of(
    operators: Mapping[str, tuple[Operator, int]], widths: Sequence[Width], table: LatencyTable
) -> Callable[[Mapping[str, int]], float]:
    """A function from the units that widths keep, by label, to the milliseconds of all operators together."""
    holders: dict[str, list[tuple[str, int, int]]] = {}
    """Tensor to the width that cuts it, the dimension, and how much of it one unit of the width holds."""
    layers = {
        f"{axis.stack}.{member}.": (width.label, axis.units)
        for width in widths
        for axis in width.axes
        if axis.stack
        for member in axis.members(range(axis.units))
    }
    for width in widths:
        for axis in width.axes:
            for cut in axis.cuts:
                part = width.of(axis, 1) * cut.block * cut.segments
                holders.setdefault(cut.tensor, []).append((width.label, cut.dim, part))

    def total(kept: Mapping[str, int]) -> float:
        milliseconds = 0.0
        for name, (operator, calls) in operators.items():
            weight = list(operator.weight)
            for label, dim, part in holders.get(name, ()):
                weight[dim] = kept[label] * part
            share = 1.0
            for layer, (label, units) in layers.items():
                share *= kept[label] / units if name.startswith(layer) else 1.0
            milliseconds += share * calls * table.milliseconds(resized(operator, tuple(weight)))
        return milliseconds

    return total


def resized(operator: Operator, weight: tuple[int, ...]) -> Operator:
    """The same layer with another weight: its input's channels and its groups follow."""
    if operator.kind == "linear":
        return Operator("linear", (*operator.input[:-1], weight[1]), weight)
    depthwise = operator.groups > 1
    groups = weight[0] if depthwise else 1
    channels = weight[0] if depthwise else weight[1]
    given = (operator.input[0], channels, *operator.input[2:])
    return Operator(operator.kind, given, weight, operator.stride, operator.padding, groups)
