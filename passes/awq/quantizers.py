"""Selection of the quantizer for a model: streamed or as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.architecture import Architecture
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.consumers.vllm_names import has_other_names
from compressor.models.facts import ModelFacts
from passes.awq.config import GROUP_SIZES, AwqConfig
from passes.awq.contract import ModelQuantizer
from passes.awq.linear_shapes import decoder_grids
from passes.awq.serving import Serving
from passes.awq.streamed import StreamedQuantizer
from passes.awq.whole import WholeQuantizer


def quantizer_from_facts(config: AwqConfig, parent: ModelFacts) -> ModelQuantizer | None:
    """Return the quantizer for a planned model; None if its architecture is not known yet."""
    architecture = parent.architecture()
    return None if architecture is None else _select(config, architecture)


def quantizer_from_model(config: AwqConfig, model: ModelDescription) -> ModelQuantizer:
    """Return the quantizer for a model on disk."""
    return _select(config, model)


def starter_fields(parent: ModelFacts) -> dict[str, Any]:
    """Return format and group size of a step, where the defaults do not fit the model."""
    architecture = parent.architecture()
    if architecture is None:
        return {}
    layers = architecture.capability(StreamedLayers)
    if layers is None:
        return {"format": "compressed-tensors"}
    tree: Any = architecture.config
    if has_other_names(tree.tree.get("model_type")) and (served := _served(tree.tree, layers)):
        return served
    widths = [inputs for _, inputs in layers.by_pattern().values()]
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    if not fitting:
        return {"group_size": -1}
    return {} if fitting[0] == GROUP_SIZES[0] else {"group_size": fitting[0]}


def _served(tree: Mapping[str, Any], layers: StreamedLayers) -> dict[str, Any] | None:
    """Return `serve_with` for two GPUs of Ada's kind; None if they do not load the model."""
    fields = {"serve_with": {"vllm": {"tp": 2, "gpu": "sm89"}}}
    config = Serving(AwqConfig.model_validate(fields), tree, layers).resolved()
    fits = not Serving(config, tree, layers).problems() and all(
        fit.grid is not None for fit in decoder_grids(config, config.grids[0], layers).values()
    )
    return fields if fits else None


def _select(config: AwqConfig, model: Architecture) -> ModelQuantizer:
    """Return the streaming quantizer for a checkpoint that may exceed the memory."""
    layers = model.capability(StreamedLayers)
    if layers is not None:
        return StreamedQuantizer(config, model, layers)
    return WholeQuantizer(config, model.family, model.config)
