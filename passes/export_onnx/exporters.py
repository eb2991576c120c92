"""Selection of the exporter that fits a model, planned or on disk."""

from __future__ import annotations

from typing import Any

from compressor.graphs.decoder.limits import graph_problems
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts
from compressor.models.families.transformers.layouts import is_tabulated
from passes.export_onnx.cached_exporter import CachedExporter
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.contract import Exporter
from passes.export_onnx.decoder.exporter import DecoderExporter
from passes.export_onnx.traced import TracedExporter

DECODER_FIELD = "decoder"
"""Field of the problems of a decoder that cannot be built at all."""


def planned_exporter(config: ExportOnnxConfig, parent: ModelFacts) -> Exporter | None:
    """Return the exporter for a planned model; None where the plan does not know the model."""
    architecture = parent.architecture()
    if architecture is None:
        return None
    return _select(config, architecture, is_quantized=parent.activation_bits is not None)


def stored_exporter(config: ExportOnnxConfig, model: ModelDescription) -> Exporter:
    """Return the exporter for a model on disk."""
    return _select(config, model, is_quantized=model.is_quantized)


def _select(config: ExportOnnxConfig, model: Architecture, *, is_quantized: bool) -> Exporter:
    """Return the exporter of a model.

    Models that generate with a cache get a built graph if their decoder is covered, otherwise a
    traced one with the cache as inputs and outputs; other models are traced without. So are models
    that round activations (`qat`): their grids are those of calls without a cache.
    """
    generation = model.capability(CachedGeneration)
    if generation is None or is_quantized:
        return TracedExporter(config, model)
    tree = model.config.model_dump(mode="json")
    if _is_covered(tree) or (is_tabulated(tree) and generation.image_inputs):
        return DecoderExporter(config, tree, generation)
    return CachedExporter(config, generation)


def _is_covered(tree: dict[str, Any]) -> bool:
    """Return True if the graph of a decoder can be built, for some context and target."""
    return not any(problem.field == DECODER_FIELD for problem in graph_problems(tree, None))
