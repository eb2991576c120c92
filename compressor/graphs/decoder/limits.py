"""Limits of decoder graphs, derived from config.json; no torch, since planning uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.models.families.transformers.decoder_settings import (
    DecoderSettings,
    decoder_settings,
)
from compressor.models.families.transformers.layouts import decoder_shape

Activation = Literal["silu", "gelu_tanh"]
Target = Literal["onnxruntime", "portable"]
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
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

    Args:
        tree: config.json.
        context: positions that the graph attends to; None for the model's own.
        target: operators of the graph; None leaves out their limits.
    """
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
    width, multiple = decoder_shape(tree).head_width, _head_multiple(settings)
    if target == "onnxruntime" and width % multiple:
        problems.append(
            GraphProblem(
                "decoder.target",
                f"ONNX Runtime's GroupQueryAttention takes heads whose width is a multiple of "
                f"{multiple}, and a head of the model is {width} wide",
                "set `decoder.target: portable`",
            )
        )
    return problems


def _head_multiple(settings: DecoderSettings) -> int:
    # Where positions have three axes, an operator of its own rotates the heads.
    return _HEAD_MULTIPLE if settings.sections else _ROTATED_HEAD_MULTIPLE


def _unsupported(settings: DecoderSettings) -> Iterator[str]:
    if settings.activation not in ACTIVATIONS:
        yield f"the activation {settings.activation}"
    for name in settings.softcaps:
        yield f"`{name}`"
    if not settings.is_causal:
        yield "attention to later tokens"
    for kind in sorted({rotary.kind for rotary in settings.rotary.values()}):
        if kind not in {*_FIXED_ROTARY, "longrope"}:
            yield f"rotary embeddings of type {kind}"


def _context_problems(settings: DecoderSettings, context: int | None) -> Iterator[GraphProblem]:
    """Yield where the context exceeds the model's, or that of its fixed frequencies."""
    longest, field = settings.positions, "decoder.context_length"
    if context is not None and context > longest:
        yield GraphProblem(
            field,
            f"{context} is more than the {longest} positions of the model",
            "lower `decoder.context_length`, or remove it",
        )
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
