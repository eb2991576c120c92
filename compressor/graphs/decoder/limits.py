"""Limits of decoder graphs, derived from config.json.

Planning uses them: for architectures with a row in the tables torch is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.graphs.decoder.activations import ACTIVATIONS
from compressor.graphs.decoder.graph_problem import (
    GraphProblem,
    Target,
    head_problems,
    length_problems,
)
from compressor.models.families.transformers.decoder_settings import (
    DecoderSettings,
    decoder_settings,
)
from compressor.models.families.transformers.layouts import decoder_shape, is_tabulated

_FIXED_ROTARY = frozenset({"default", "linear", "dynamic", "llama3", "proportional", "yarn"})
"""Rotary embeddings whose frequencies do not change within the positions of the model. Those of
``dynamic`` change beyond them, and those of ``longrope`` before."""


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
