"""Selection of the quantizer that fits a model, planned or on disk."""

from __future__ import annotations

import json
from typing import Any

from compressor.config.discovery import FAMILIES, load
from compressor.config.record import Record
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.contract import Family
from compressor.models.facts import ModelFacts
from compressor.models.families.transformers.config import CheckpointConfig
from passes.awq.config import AwqConfig
from passes.awq.contract import ModelQuantizer
from passes.awq.streamed import StreamedQuantizer
from passes.awq.whole import WholeQuantizer


def planned_quantizer(config: AwqConfig, parent: ModelFacts) -> ModelQuantizer | None:
    """Return the quantizer for a planned model; None where the plan does not know the model."""
    if parent.family is None or parent.config is None:
        return None
    family: Family[Any] = load(FAMILIES, parent.family)
    architecture = family.Config.model_validate_json(json.dumps(dict(parent.config)))
    return _select(config, family, architecture)


def stored_quantizer(config: AwqConfig, model: ModelDescription) -> ModelQuantizer:
    """Return the quantizer for a model on disk."""
    return _select(config, model.family, model.config)


def _select(config: AwqConfig, family: Family[Any], architecture: Record) -> ModelQuantizer:
    """Return the streaming quantizer for a transformers checkpoint, which may exceed the memory."""
    if isinstance(architecture, CheckpointConfig):
        return StreamedQuantizer(config, architecture.tree)
    return WholeQuantizer(config, family, architecture)
