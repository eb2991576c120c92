"""Lint quantized ONNX graphs for a target: the entry point of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import onnx

from compressor.config.discovery import suggestion
from compressor.errors import UsageError
from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.onnxruntime import onnxruntime_problems
from compressor.graphs.lint.onnxruntime_mobile import onnxruntime_mobile_problems
from compressor.graphs.lint.problem import Problem
from compressor.graphs.lint.tensorrt import tensorrt_problems

LintTarget = Literal["onnxruntime", "onnxruntime-mobile", "tensorrt"]


def lint(model: onnx.ModelProto, target: LintTarget, gpus: Sequence[str] = ()) -> list[Problem]:
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
    if target == "onnxruntime-mobile":
        return list(onnxruntime_mobile_problems(index))
    return list(onnxruntime_problems(index))


def parse_target(name: str, others: Sequence[str] = ()) -> LintTarget:
    """Return the target of this name.

    Args:
        name: as the user wrote it.
        others: targets that are checked elsewhere, which an error may suggest.

    Raises:
        UsageError: there is none; the message suggests the nearest name.
    """
    for target in get_args(LintTarget):
        if target == name:
            parsed: LintTarget = target
            return parsed
    raise UsageError(
        f"unknown lint target {name!r}", remedy=suggestion(name, [*get_args(LintTarget), *others])
    )
