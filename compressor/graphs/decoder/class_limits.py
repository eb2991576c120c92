"""Limits of the decoder graph of a class of transformers without a row in the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.errors import ModelError
from compressor.graphs.decoder.architecture import DecoderArchitecture
from compressor.graphs.decoder.class_architecture import class_architecture
from compressor.graphs.decoder.class_modules import UnknownStructureError
from compressor.graphs.decoder.graph_problem import (
    GraphProblem,
    Target,
    head_problems,
    length_problems,
)
from compressor.graphs.decoder.structures import structure_of

_REMEDY = "remove the fields of `decoder`: the model is traced"
_FIXED_ROTARY = frozenset({"default", "linear", "dynamic", "llama3", "proportional", "yarn"})
"""Rotary embeddings whose frequencies do not change within the positions of the model."""


def class_problems(
    tree: Mapping[str, Any], context: int | None, target: Target | None
) -> list[GraphProblem]:
    """Return everything that keeps the graph of a class from being built.

    Args:
        tree: config.json.
        context: positions that the graph attends to; None for the model's own.
        target: operators of the graph; None leaves out their limits.
    """
    name = tree.get("model_type")
    if structure_of(tree) is None:
        return [GraphProblem("decoder", f"the graph of {name} decoders is not built", _REMEDY)]
    try:
        architecture = class_architecture(tree, None)
    except (UnknownStructureError, ModelError) as error:
        reason = f"the graph of {name} decoders with {error} is not built"
        return [GraphProblem("decoder", reason, _REMEDY)]
    problems = [*length_problems(context, architecture.context), *_rotary_problems(tree)]
    if target == "onnxruntime":
        width = architecture.decoder.head_width
        problems += head_problems(width, rotates=_rotates_in_attention(architecture))
    return problems


def _rotates_in_attention(architecture: DecoderArchitecture) -> bool:
    return any(rotary.cos.shape[1] % 8 == 0 for rotary in architecture.rotary.values())


def _rotary_problems(tree: Mapping[str, Any]) -> Iterator[GraphProblem]:
    """Yield rotary embeddings that change with the length of the sequence."""
    fields = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    parts = [fields, *(part for part in fields.values() if isinstance(part, dict))]
    for part in parts:
        kind = part.get("rope_type") or part.get("type") or "default"
        if kind not in _FIXED_ROTARY:
            yield GraphProblem(
                "decoder",
                f"the graph of {tree['model_type']} decoders with rotary embeddings of type {kind} "
                "is not built",
                _REMEDY,
            )
