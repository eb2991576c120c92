"""Lint quantized ONNX graphs for a target: the entry point of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import onnx

from compressor.config.discovery import suggestion
from compressor.errors import UsageError
from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.onnxruntime import onnxruntime_problems
from compressor.graphs.lint.problem import Problem
from compressor.graphs.lint.tensorrt import tensorrt_problems
from compressor.models.quantized.quantization import Target


def lint(model: onnx.ModelProto, target: Target, gpus: Sequence[str] = ()) -> list[Problem]:
    """Return the nodes that a target refuses or leaves in float.

    The weights need not be loaded: rules that need a constant's values skip one that is not there.

    Args:
        model: the graph.
        target: the runtime that is to compute it.
        gpus: compute capabilities, such as ``sm86``, that a TensorRT engine is to be built for.
    """
    index = GraphIndex(model)
    if target == "tensorrt":
        return list(tensorrt_problems(index, gpus))
    return list(onnxruntime_problems(index))


def parse_target(name: str) -> Target:
    """Return the target of this name.

    Raises:
        UsageError: there is none; the message suggests the nearest name.
    """
    for target in get_args(Target):
        if target == name:
            parsed: Target = target
            return parsed
    raise UsageError(
        f"unknown lint target {name!r}", remedy=suggestion(name, list(get_args(Target)))
    )
