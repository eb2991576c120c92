"""Selection of the exporter that fits a model, planned or on disk."""

from __future__ import annotations

import json
from typing import Any

from compressor.config.discovery import FAMILIES, load
from compressor.config.record import Record
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.contract import Family
from compressor.models.facts import ModelFacts
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.contract import Exporter
from passes.export_onnx.decoder.exporter import DecoderExporter
from passes.export_onnx.traced import TracedExporter


def planned_exporter(config: ExportOnnxConfig, parent: ModelFacts) -> Exporter | None:
    """Return the exporter for a planned model; None where the plan does not know the model."""
    if parent.family is None or parent.config is None:
        return None
    family: Family[Any] = load(FAMILIES, parent.family)
    architecture = family.Config.model_validate_json(json.dumps(dict(parent.config)))
    return _select(config, family, architecture)


def stored_exporter(config: ExportOnnxConfig, model: ModelDescription) -> Exporter:
    """Return the exporter for a model on disk."""
    return _select(config, model.family, model.config)


def _select(config: ExportOnnxConfig, family: Family[Any], architecture: Record) -> Exporter:
    """Return the exporter of decoders for models that generate with a key-value cache."""
    generation = family.capability(CachedGeneration, architecture)
    if generation is None:
        return TracedExporter(config, family, architecture)
    return DecoderExporter(config, architecture.model_dump(mode="json"), generation)
