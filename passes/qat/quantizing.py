"""From a float artifact's folder to a quantized one's: fold, calibrate, round, choose what stays in float, train, save."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from calibration.table import CalibrationTable, Range, read_table
from compressor.artifacts.store import Artifact
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.models.capabilities.discovery import LoadedModel
from compressor.models.capabilities.quantizable_layers import LayerContext, QuantizableLayers
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.capabilities.valid_positions import ValidPositions
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module, save_quantized
from compressor.models.contract import Family
from compressor.models.quantized.fake_quantization import (
    IntegerLayer,
    Layer,
    fold,
    replace,
    round_input,
)
from compressor.models.quantized.quantization import Grid, Quantization, QuantizedLayer
from passes.common.device import device_of, prepare_torch
from passes.qat.bias import correct_biases
from passes.qat.calibrating import (
    calibrated,
    check_table,
    inputs_of,
    rounds_result,
    samples_of,
    some_inputs,
)
from passes.qat.scales import activation_grid, activation_scale, weight_scales
from passes.qat.selection import Answers, choose
from passes.qat.smoothing import smooth
from passes.qat.step import QatConfig
from passes.qat.tables import round_tables, tables_of
from passes.qat.training import train

_CORRECTED_ON = 64
"""Samples on which biases are corrected, at once."""


def check_supported(config: QatConfig, parent: Artifact) -> None:
    """Whether models of this family can be saved with grids, and have what the config compares.

    Raises:
        RequirementError: they cannot, or have not.
    """
    model = read_description(parent.model)
    family, architecture = model.family, model.config
    comparing = [
        field for field in ("keep_float", "fine_tuning") if getattr(config, field) is not None
    ]
    if comparing and "logits" not in family.signature(architecture).outputs:
        raise RequirementError(
            f"{' and '.join(f'`{one}`' for one in comparing)}: a model of the family {family.name} has no answers to compare",
            remedy="leave it out, and name layers in `exclude` where some must stay in float",
        )
    if type(family).save is not Family.save:
        raise RequirementError(
            f"a model of the family {family.name} is saved in a format of its own, which holds no integer grids",
            remedy="quantize families of ours: autoglm-phone, image-classifier, or your own",
        )


def table_of(config: QatConfig, parent: Artifact, context: PassContext) -> CalibrationTable | None:
    """The table that the config names, if it does.

    Raises:
        RequirementError: there is none, or it belongs to another model.
    """
    if config.calibration.table is None:
        return None
    return read_table(context.artifacts["table"].model, parent.manifest.id, config.activation_bits)


def quantize(config: QatConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Write the quantized form of ``parent`` into ``out``."""
    prepare_torch(context)
    model = read_description(parent.model)
    family, architecture = model.family, model.config
    teacher = load_module(model, context.device).requires_grad_(False)
    samples = samples_of(config, context)
    loaded = LoadedModel(teacher, some_inputs(samples, teacher, 2))
    graph = family.require(QuantizableLayers, architecture, loaded)
    positions = family.require(ValidPositions, architecture)
    known = tables_of(teacher) if config.embeddings else ()
    every, tables = _chosen(config, graph, known)
    excluded = {one: "excluded" for one in graph.names if one not in every}
    excluded |= dict.fromkeys(graph.left_out, "its weight is used elsewhere too")
    folded = copy.deepcopy(teacher)
    norms = {
        one: found.norm for one, found in graph.contexts(every).items() if found.norm is not None
    }
    fold(folded, norms)
    smoothed: tuple[str, ...] = ()
    if config.smoothing is not None:
        batches = inputs_of(samples, folded, "look for outliers")
        alone = [
            one
            for one, found in graph.contexts(every).items()
            if one in every and found.around is None
        ]
        smoothed = smooth(folded, alone, batches, positions, config.smoothing)
    table = table_of(config, parent, context)
    if table is None:
        outputs = {one: rounds_result(config, folded.get_submodule(one)) for one in graph.names}
        table = calibrated(config, positions, folded, outputs, samples, parent)
    check_table(table, every, config, folded)
    batch = some_inputs(samples, teacher, _CORRECTED_ON)
    build = _Builder(
        config, graph, folded, norms, table, tables, smoothed, batch, positions.mask(batch)
    )

    told: dict[str, Any] = {}
    kept: dict[str, str] = {}
    if config.keep_float is not None:
        answers = Answers(
            config.keep_float,
            family.require(TrainingHeads, architecture),
            teacher,
            samples,
            context,
        )
        divergence = answers.divergences(build.rounded(every))
        kept, told = choose(config, divergence, build.module, answers, context)
    integer = [one for one in every if one not in kept]
    quantization = build.quantization(integer, excluded | kept)
    module = build.module(integer)
    if config.fine_tuning is not None:
        told |= train(
            config.fine_tuning,
            family.require(TrainingHeads, architecture),
            module,
            teacher,
            context,
        )
    save_quantized(module, family, architecture, quantization, out)
    table.write(out)
    summary = {
        "integer_layers": len(integer),
        "float_layers": len(excluded) + len(kept),
        "integer_tables": len(tables),
        "smoothed_layers": len(smoothed),
        "folded_norms": len(norms),
        "kept_float": [{"layer": one, "why": why} for one, why in quantization.kept_float.items()],
    }
    return PassOutput(summary | told)


@dataclass(frozen=True, slots=True)
class _Builder:
    """Integer models from a folded one."""

    config: QatConfig
    graph: QuantizableLayers
    folded: nn.Module
    norms: Mapping[str, str]
    table: CalibrationTable
    embeddings: tuple[str, ...]
    smoothed: tuple[str, ...]
    batch: Mapping[str, Tensor]
    """Inputs on which biases are corrected."""
    meant: Tensor | None
    """Which of their positions are no padding."""

    def quantization(self, integer: Collection[str], kept: Mapping[str, str]) -> Quantization:
        """What is integer where these layers are."""
        return self._quantization(integer, kept, self.graph.contexts(integer))

    def _quantization(
        self, integer: Collection[str], kept: Mapping[str, str], found: Mapping[str, LayerContext]
    ) -> Quantization:
        layers = {
            name: self._layer(name, found[name]) for name in self.graph.names if name in integer
        }
        inputs = {
            str(found[name].around): self._input_grid(name, found[name])
            for name in layers
            if self._rounds_around(found[name])
        }
        folded = {name: norm for name, norm in self.norms.items() if name not in layers}
        return Quantization(
            target=self.config.target,
            layers=layers,
            inputs=inputs,
            embeddings={name: Grid(bits=self.config.weight_bits) for name in self.embeddings},
            smoothed=self.smoothed,
            folded=folded,
            kept_float=dict(kept),
        )

    def module(self, integer: Collection[str]) -> nn.Module:
        """The model with its calibrated scales and corrected biases."""
        module = self.rounded(integer)
        if self.config.bias_correction:
            correct_biases(module, self.folded, self.batch, self.meant)
        return module

    def rounded(self, integer: Collection[str]) -> nn.Module:
        """The model with its calibrated scales, and its biases as they were."""
        module = copy.deepcopy(self.folded)
        found = self.graph.contexts(integer)
        quantization = self._quantization(integer, {}, found)
        for name, one in quantization.layers.items():
            layer = IntegerLayer(cast("Layer", module.get_submodule(name)), one)
            layer.weight_grid.set_scale(
                weight_scales(layer.layer.weight, one.weight, self.config.weight_observer)
            )
            seen = self.table.tensors[f"{name}:input"]
            if one.input is not None and layer.input_grid is not None:
                layer.input_grid.set_scale(activation_scale(seen, one.input))
            elif (around := found[name].around) is not None:
                grid = quantization.inputs[around]
                round_input(module.get_submodule(around), grid).set_scale(
                    activation_scale(seen, grid)
                )
            if one.output is not None and layer.output_grid is not None:
                layer.output_grid.set_scale(
                    activation_scale(self.table.tensors[f"{name}:output"], one.output)
                )
            replace(module, name, layer.to(device_of(module)))
        round_tables(module, quantization.embeddings)
        return module.eval()

    def _layer(self, name: str, found: LayerContext) -> QuantizedLayer:
        rounds = rounds_result(self.config, self.folded.get_submodule(name)) and not found.rounded
        seen = self.table.tensors
        output = self._grid(seen[f"{name}:output"], nonnegative=found.clipped) if rounds else None
        return QuantizedLayer(
            weight=Grid(bits=self.config.weight_bits),
            input=None if self._rounds_around(found) else self._input_grid(name, found),
            output=output,
            norm=found.norm,
        )

    def _input_grid(self, name: str, found: LayerContext) -> Grid:
        return self._grid(self.table.tensors[f"{name}:input"], nonnegative=found.nonnegative)

    def _grid(self, seen: Range, *, nonnegative: bool) -> Grid:
        """TensorRT takes no zero-point but 0."""
        free = self.config.target == "onnxruntime"
        return activation_grid(
            seen, self.config.activation_bits, nonnegative=nonnegative and free, symmetric=not free
        )

    def _rounds_around(self, found: LayerContext) -> bool:
        """ONNX Runtime adds integers where both sides are; otherwise it goes through float, and through another layout."""
        return self.config.target == "onnxruntime" and found.around is not None


def _chosen(
    config: QatConfig, graph: QuantizableLayers, tables: tuple[str, ...]
) -> tuple[list[str], tuple[str, ...]]:
    """The layers that may be integer, and the tables.

    Raises:
        RequirementError: a pattern of ``exclude`` matches none, or no layer is left.
    """
    known = (*graph.names, *tables)
    idle = [
        pattern
        for pattern in config.exclude
        if not any(fnmatchcase(name, pattern) for name in known)
    ]
    if idle:
        raise RequirementError(
            f"`exclude` names no layer of this model: {', '.join(idle)}",
            remedy=f"its layers are {', '.join(known)}",
        )
    left = {
        name for name in known if not any(fnmatchcase(name, pattern) for pattern in config.exclude)
    }
    names = [name for name in graph.names if name in left]
    if not names:
        raise RequirementError(
            "no linear or convolutional layer is left to quantize", remedy="shorten `exclude`"
        )
    return names, tuple(name for name in tables if name in left)
