"""Selection of the exporter that fits a model, planned or on disk."""

from __future__ import annotations

from compressor.models.architecture import Architecture
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.contract import Exporter
from passes.export_onnx.decoder.exporter import DecoderExporter
from passes.export_onnx.traced import TracedExporter


def planned_exporter(config: ExportOnnxConfig, parent: ModelFacts) -> Exporter | None:
    """Return the exporter for a planned model; None where the plan does not know the model."""
    architecture = parent.architecture()
    return None if architecture is None else _select(config, architecture)


def stored_exporter(config: ExportOnnxConfig, model: ModelDescription) -> Exporter:
    """Return the exporter for a model on disk."""
    return _select(config, model)


def _select(config: ExportOnnxConfig, model: Architecture) -> Exporter:
    """Return the exporter of decoders for models that generate with a key-value cache."""
    generation = model.capability(CachedGeneration)
    if generation is None:
        return TracedExporter(config, model)
    return DecoderExporter(config, model.config.model_dump(mode="json"), generation)
