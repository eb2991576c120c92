"""Limits of decoder graphs, derived from config.json.

Planning uses them: for architectures with a row in the tables torch is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.models.families.transformers.decoder_settings import (
    DecoderSettings,
    decoder_settings,
)
from compressor.models.families.transformers.layouts import decoder_shape, is_tabulated

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2", "xielu"]
Target = Literal["onnxruntime", "portable"]
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}
"""Transformers' names of the activations that a graph can compute."""
_FIXED_ROTARY = frozenset({"default", "linear", "dynamic", "llama3", "proportional", "yarn"})
"""Rotary embeddings whose frequencies do not change within the positions of the model. Those of
``dynamic`` change beyond them, and those of ``longrope`` before."""
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


def graph_problems(
    tree: Mapping[str, Any], context: int | None, target: Target | None = None
) -> list[GraphProblem]:
    """Return everything that keeps the graph of a decoder from being built.

    A problem of the field ``decoder`` holds for every context and target: such a decoder is traced.

    Args:
        tree: config.json.
        context: positions that the graph attends to; None for the model's own.
        target: operators of the graph; None leaves out their limits.
    """
    if not is_tabulated(tree):
        from compressor.graphs.decoder.class_limits import class_problems

        return class_problems(tree, context, target)
    settings = decoder_settings(tree)
    problems = []
    if unsupported := list(_unsupported(settings)):
        problems.append(
            GraphProblem(
                "decoder",
                f"the graph of {tree['model_type']} decoders with {', '.join(unsupported)} cannot "
                "be built yet",
                "measure and ship the torch or awq artifact instead",
            )
        )
    problems += _context_problems(settings, context)
    width = decoder_shape(tree).head_width
    if target == "onnxruntime":
        problems += head_problems(width, rotates=not settings.sections)
    return problems


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


def _unsupported(settings: DecoderSettings) -> Iterator[str]:
    if settings.activation not in ACTIVATIONS:
        yield f"the activation {settings.activation}"
    if not settings.is_causal:
        yield "attention to later tokens"
    for kind in sorted({rotary.kind for rotary in settings.rotary.values()}):
        if kind not in {*_FIXED_ROTARY, "longrope"}:
            yield f"rotary embeddings of type {kind}"


def _context_problems(settings: DecoderSettings, context: int | None) -> Iterator[GraphProblem]:
    """Yield where the context exceeds the model's, or that of its fixed frequencies."""
    longest, field = settings.positions, "decoder.context_length"
    yield from length_problems(context, longest)
    for rotary in settings.rotary.values():
        fixed = rotary.original_positions
        if rotary.kind == "longrope" and (context or longest) > fixed:
            yield GraphProblem(
                field,
                f"rotary embeddings of type longrope change beyond {fixed} positions, and the "
                f"graph would attend to {context or longest}",
                f"set `decoder.context_length: {fixed}`",
            )
            return
