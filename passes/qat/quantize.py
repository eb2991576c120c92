"""Quantization of a float model: fold, calibrate, choose integer layers, fine-tune, save."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from calibration.samples import Samples
from calibration.table import CalibrationTable
from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import PassContext, PassOutput
from compressor.models.architecture import Architecture
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.quantizable_layers import QuantizableLayers
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.capabilities.valid_positions import ValidPositions
from compressor.models.checkpoint.description import ModelDescription, read_description
from compressor.models.checkpoint.loading import load_module, save_quantized
from compressor.models.quantized.fake_quantization import fold_norms
from compressor.models.quantized.quantization import Quantization
from passes.common.changed_share import count_share
from passes.common.device import prepare_torch
from passes.common.training import check_batch_norm
from passes.qat.config import QatConfig
from passes.qat.fine_tuning import fine_tune
from passes.qat.integer_model import BiasSamples, FoldedModel, IntegerModelBuilder
from passes.qat.keep_float import FloatComparison, check_drop, choose_float_layers
from passes.qat.layer_selection import Selection, select_layers
from passes.qat.ranges import (
    check_table,
    iterate_inputs,
    load_table,
    observe_ranges,
    open_samples,
    sample_inputs,
    unused_layers,
)
from passes.qat.smoothing import smooth_inputs

_TRACED_SAMPLES = 2
"""Samples in the batch with which the model is traced to find its layers."""
_DTYPE = "dtype"
"""Field of a checkpoint's config.json."""
_BIAS_SAMPLES = 64
"""Samples on which biases are corrected, in one batch."""


@dataclass(frozen=True, slots=True)
class _FloatModel:
    """The float parent, and the samples that it is observed on."""

    module: nn.Module
    layers: QuantizableLayers
    positions: ValidPositions
    samples: Samples


@dataclass(frozen=True, slots=True)
class _CalibratedModel:
    """The folded model with the ranges of its layers, ready to be rounded."""

    selection: Selection
    folded: FoldedModel
    table: CalibrationTable
    builder: IntegerModelBuilder


def quantize(config: QatConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Write the quantized form of a float model, and its calibration table, to ``out``."""
    prepare_torch(context)
    description = read_description(parent.model)
    model = _load_float_model(config, description, context)
    prepared = _calibrate(config, parent, model, context)
    selection, builder = prepared.selection, prepared.builder
    float_reasons = dict(selection.float_layers)
    summary: dict[str, Any] = {}
    if config.keep_float is not None:
        comparison = FloatComparison(
            config.keep_float,
            description.require(TrainingHeads),
            model.module,
            model.samples,
            context,
        )
        divergences = comparison.divergences(builder.build_uncorrected(selection.layers))
        sensitive = choose_float_layers(divergences, builder.build, comparison)
        check_drop(sensitive, context, trains=config.fine_tuning is not None)
        float_reasons |= sensitive.reasons()
        summary = sensitive.summary()
    integer = [name for name in selection.layers if name not in float_reasons]
    module = builder.build(integer)
    if config.fine_tuning is not None:
        heads = description.require(TrainingHeads)
        summary |= fine_tune(config.fine_tuning, heads, module, model.module, context)
    quantization = builder.quantization(integer, float_reasons)
    save_quantized(module, _in_float32(description), quantization, out, parent.model)
    prepared.table.write(out)
    inputs = sample_inputs(model.samples, model.module, _TRACED_SAMPLES)
    share = count_share(model.module, integer, selection.embeddings, inputs)
    share.warn(context.note)
    return PassOutput(_summary(quantization, prepared.folded) | share.summary() | summary)


def _calibrate(
    config: QatConfig, parent: Artifact, model: _FloatModel, context: PassContext
) -> _CalibratedModel:
    """Select layers, fold and smooth, and observe ranges or read them from a table."""
    selection = select_layers(config, model.layers, model.module)
    if not config.ignore:
        share = count_share(model.module, selection.layers, selection.embeddings)
        share.check(config.min_share, _share_remedy(config))
    folded = _fold_and_smooth(config, model, selection)
    if config.fine_tuning is not None:
        check_batch_norm(config.fine_tuning.training, folded.module)
    table = load_table(config, parent, context) or observe_ranges(
        config,
        model_id=parent.manifest.id,
        module=folded.module,
        layers=model.layers.names,
        positions=model.positions,
        samples=model.samples,
    )
    if config.calibration.table is None:
        selection = _without_unused(selection, table, context)
    check_table(table, selection.layers, config, folded.module)
    batch = sample_inputs(model.samples, model.module, _BIAS_SAMPLES)
    bias_samples = BiasSamples(batch, model.positions.mask(batch))
    builder = IntegerModelBuilder(
        config, model.layers, folded, table, selection.embeddings, bias_samples
    )
    return _CalibratedModel(selection, folded, table, builder)


def _without_unused(
    selection: Selection, table: CalibrationTable, context: PassContext
) -> Selection:
    """Return the selection without layers whose input is constant, which stay in float."""
    unused = unused_layers(table, selection.layers)
    if unused:
        lines = "; ".join(f"{name}: {reason}" for name, reason in unused.items())
        context.note(f"{len(unused)} of {len(selection.layers)} layers stay in float: {lines}")
    return replace(
        selection,
        layers=tuple(name for name in selection.layers if name not in unused),
        float_layers={**selection.float_layers, **unused},
    )


def _share_remedy(config: QatConfig) -> str:
    """Return what quantizes more of a model than linear and convolutional layers."""
    weights = "quantize the weights alone with `type: awq`"
    if config.quantize_embeddings or config.target == "tensorrt":
        return weights
    return f"{weights}, or set `quantize_embeddings: true` if the embedding is most of the model"


def _load_float_model(
    config: QatConfig, description: ModelDescription, context: PassContext
) -> _FloatModel:
    # The integers are computed in float32; a half-precision checkpoint becomes one of float32.
    module = load_module(description, context.device).float().requires_grad_(False)
    samples = open_samples(config.calibration, context)
    layers = description.family.require(
        QuantizableLayers,  # type: ignore[type-abstract]
        description.config,
        LoadedModel(module, sample_inputs(samples, module, _TRACED_SAMPLES)),
    )
    return _FloatModel(module, layers, description.require(ValidPositions), samples)


def _in_float32(model: Architecture) -> Architecture:
    """Return the architecture of a checkpoint whose weights are stored in float32."""
    if _DTYPE not in model.config.model_dump(mode="json"):
        return model
    return Architecture(model.family, model.family.slim(model.config, **{_DTYPE: "float32"}))


def _fold_and_smooth(config: QatConfig, model: _FloatModel, selection: Selection) -> FoldedModel:
    """Return a copy of the float model with folded normalizations and smoothed inputs."""
    module = copy.deepcopy(model.module)
    contexts = model.layers.contexts(selection.layers)
    norms = {name: layer.norm for name, layer in contexts.items() if layer.norm is not None}
    fold_norms(module, norms)
    smoothed: tuple[str, ...] = ()
    if config.smoothing is not None:
        names = [
            name
            for name, layer in contexts.items()
            if name in selection.layers and layer.around is None  # no residual reads the input
        ]
        batches = iterate_inputs(model.samples, module, "observe outliers")
        smoothed = smooth_inputs(module, names, batches, model.positions, config.smoothing)
    return FoldedModel(module, norms, smoothed)


def _summary(quantization: Quantization, folded: FoldedModel) -> dict[str, Any]:
    """Return the numbers of layers for the manifest."""
    return {
        "integer_layers": len(quantization.layers),
        "float_layers": len(quantization.kept_float),
        "integer_tables": len(quantization.embeddings),
        "smoothed_layers": len(folded.smoothed),
        "folded_norms": len(folded.norms),
        "kept_float": [
            {"layer": name, "why": reason} for name, reason in quantization.kept_float.items()
        ],
    }
