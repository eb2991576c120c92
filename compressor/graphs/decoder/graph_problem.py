"""Reasons for which the graph of a decoder cannot be built; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Target = Literal["onnxruntime", "portable"]
_HEAD_MULTIPLE = 8
"""Widths of a head that GroupQueryAttention takes are multiples of it."""
_ROTATED_HEAD_MULTIPLE = 16
"""The same, where GroupQueryAttention rotates the heads too."""


@dataclass(frozen=True, slots=True)
class GraphProblem:
    """A reason for which the graph of a decoder cannot be built."""

    field: str
    """Path of the field of `export-onnx`."""
    reason: str
    remedy: str


def head_problems(width: int, *, rotates: bool) -> Iterator[GraphProblem]:
    """Yield a problem if ONNX Runtime's attention does not take heads of a width.

    Args:
        width: of a head.
        rotates: True if the operator of the attention rotates the heads too.
    """
    multiple = _ROTATED_HEAD_MULTIPLE if rotates else _HEAD_MULTIPLE
    if width % multiple:
        yield GraphProblem(
            "decoder.target",
            f"ONNX Runtime's GroupQueryAttention takes heads whose width is a multiple of "
            f"{multiple}, and a head of the model is {width} wide",
            "set `decoder.target: portable`",
        )


def length_problems(context: int | None, longest: int) -> Iterator[GraphProblem]:
    """Yield a problem if the context is longer than the model's."""
    if context is not None and context > longest:
        yield GraphProblem(
            "decoder.context_length",
            f"{context} is more than the {longest} positions of the model",
            "lower `decoder.context_length`, or remove it",
        )
