"""From a float artifact's folder to a quantized one's: fold, calibrate, round, choose what stays in float, train, save."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from calibration.capture import Ranges, run_watched
from calibration.observers import observer
from calibration.samples import Samples
from calibration.table import CalibrationTable, Range, read_table
from compressor.artifacts.store import Artifact
from compressor.config.discovery import FAMILIES, load
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import NumericalError, RequirementError
from compressor.models.contract import Family
from compressor.models.fake_quantization import IntegerLayer, Layer, fold, replace, round_input
from compressor.models.loading import load_module, read_description, save_quantized
from compressor.models.quantization import Grid, Quantization, QuantizedLayer
from passes.common.accuracy import device_of, tensors_from_batch
from passes.common.setup import prepare_torch
from passes.qat.bias import correct_biases
from passes.qat.graph import Found, Graph
from passes.qat.scales import activation_scale, weight_scales
from passes.qat.selection import Answers, choose
from passes.qat.step import QatConfig
from passes.qat.training import train

_CORRECTED_ON = 64
"""Samples on which biases are corrected, at once."""


def check_supported(parent: Artifact) -> None:
    """Whether models of this family can be saved with grids.

    Raises:
        RequirementError: they cannot.
    """
    name, _ = read_description(parent.model)
    family: Family[Any] = load(FAMILIES, name)
    if type(family).save is not Family.save:
        raise RequirementError(
            f"a model of the family {name} is saved in a format of its own, which holds no integer grids",
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
    name, architecture = read_description(parent.model)
    family: Family[Any] = load(FAMILIES, name)
    teacher = load_module(parent.model, context.device).requires_grad_(False)
    samples = _samples(config, context)
    graph = Graph(teacher, _inputs(samples, teacher, 2))
    every = _names(config, graph)
    excluded = {one: "excluded" for one in graph.names if one not in every}
    excluded |= dict.fromkeys(graph.left_out, "its weight is used elsewhere too")
    folded = copy.deepcopy(teacher)
    norms = {one: found.norm for one, found in graph.found(every).items() if found.norm is not None}
    fold(folded, norms)
    table = table_of(config, parent, context)
    if table is None:
        outputs = {one: _rounds_result(config, folded.get_submodule(one)) for one in graph.names}
        table = _calibrated(config, folded, outputs, samples, parent)
    _check_table(table, every, config, folded)
    build = _Builder(config, graph, folded, norms, table, _inputs(samples, teacher, _CORRECTED_ON))

    told: dict[str, Any] = {}
    kept: dict[str, str] = {}
    if config.keep_float is not None:
        answers = Answers(config.keep_float, family, teacher, samples, context)
        divergence = answers.divergences(build.rounded(every))
        kept, told = choose(config, divergence, build.module, answers, context)
    integer = [one for one in every if one not in kept]
    quantization = build.quantization(integer, excluded | kept)
    module = build.module(integer)
    if config.fine_tuning is not None:
        told |= train(config.fine_tuning, family, module, teacher, context)
    save_quantized(module, name, architecture, quantization, out)
    table.write(out)
    summary = {
        "integer_layers": len(integer),
        "float_layers": len(excluded) + len(kept),
        "folded_norms": len(norms),
        "kept_float": [{"layer": one, "why": why} for one, why in quantization.kept_float.items()],
    }
    return PassOutput(summary | told)


@dataclass(frozen=True, slots=True)
class _Builder:
    """Integer models from a folded one."""

    config: QatConfig
    graph: Graph
    folded: nn.Module
    norms: Mapping[str, str]
    table: CalibrationTable
    batch: Mapping[str, Tensor]
    """Inputs on which biases are corrected."""

    def quantization(self, integer: Collection[str], kept: Mapping[str, str]) -> Quantization:
        """What is integer where these layers are."""
        return self._quantization(integer, kept, self.graph.found(integer))

    def _quantization(
        self, integer: Collection[str], kept: Mapping[str, str], found: Mapping[str, Found]
    ) -> Quantization:
        layers = {name: self._layer(name, found[name]) for name in self.graph.names if name in integer}
        inputs = {
            str(found[name].around): self._input_grid(found[name])
            for name in layers
            if self._rounds_around(found[name])
        }
        folded = {name: norm for name, norm in self.norms.items() if name not in layers}
        return Quantization(
            target=self.config.target, layers=layers, inputs=inputs, folded=folded, kept_float=dict(kept)
        )

    def module(self, integer: Collection[str]) -> nn.Module:
        """The model with its calibrated scales and corrected biases."""
        module = self.rounded(integer)
        if self.config.bias_correction:
            correct_biases(module, self.folded, self.batch)
        return module

    def rounded(self, integer: Collection[str]) -> nn.Module:
        """The model with its calibrated scales, and its biases as they were."""
        module = copy.deepcopy(self.folded)
        found = self.graph.found(integer)
        quantization = self._quantization(integer, {}, found)
        for name, one in quantization.layers.items():
            layer = IntegerLayer(cast("Layer", module.get_submodule(name)), one)
            layer.weight_grid.set_scale(weight_scales(layer.layer.weight, one.weight, self.config.weight_observer))
            seen = self.table.tensors[f"{name}:input"]
            if one.input is not None and layer.input_grid is not None:
                layer.input_grid.set_scale(activation_scale(seen, one.input))
            elif (around := found[name].around) is not None:
                grid = quantization.inputs[around]
                round_input(module.get_submodule(around), grid).set_scale(activation_scale(seen, grid))
            if one.output is not None and layer.output_grid is not None:
                layer.output_grid.set_scale(activation_scale(self.table.tensors[f"{name}:output"], one.output))
            replace(module, name, layer.to(device_of(module)))
        return module.eval()

    def _layer(self, name: str, found: Found) -> QuantizedLayer:
        bits = self.config.activation_bits
        rounds = _rounds_result(self.config, self.folded.get_submodule(name)) and not found.rounded
        output = Grid(bits=bits, nonnegative=found.clipped) if rounds else None
        return QuantizedLayer(
            weight=Grid(bits=self.config.weight_bits),
            input=None if self._rounds_around(found) else self._input_grid(found),
            output=output,
            norm=found.norm,
        )

    def _input_grid(self, found: Found) -> Grid:
        nonnegative = self.config.target == "onnxruntime" and found.nonnegative
        return Grid(bits=self.config.activation_bits, nonnegative=nonnegative)

    def _rounds_around(self, found: Found) -> bool:
        """ONNX Runtime adds integers where both sides are; otherwise it goes through float, and through another layout."""
        return self.config.target == "onnxruntime" and found.around is not None


def _rounds_result(config: QatConfig, layer: nn.Module) -> bool:
    """Whether the layer's result must be rounded where no other layer does: ONNX Runtime would compute a convolution in float."""
    return config.target == "onnxruntime" and not isinstance(layer, nn.Linear)


def _samples(config: QatConfig, context: PassContext) -> Samples:
    """The calibration samples."""
    calibration = config.calibration
    return Samples(
        context.data(calibration.data),
        count=calibration.num_samples,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
        progress=lambda what, done, total: context.progress(what, done, total, {}),
    )


def _inputs(samples: Samples, module: nn.Module, count: int) -> dict[str, Tensor]:
    """The inputs of so many samples, evenly over those of calibration; if there are fewer, some twice."""
    places = samples.places[np.arange(count) * len(samples) // count]
    batch = tensors_from_batch(samples.dataset.batch(places), device_of(module))
    return {name: batch[name] for name in samples.dataset.input_names}


def _names(config: QatConfig, graph: Graph) -> list[str]:
    """The layers that may be integer.

    Raises:
        RequirementError: a pattern of ``exclude`` matches none, or nothing is left.
    """
    idle = [pattern for pattern in config.exclude if not any(fnmatchcase(name, pattern) for name in graph.names)]
    if idle:
        raise RequirementError(
            f"`exclude` names no layer of this model: {', '.join(idle)}",
            remedy=f"its layers are {', '.join(graph.names)}",
        )
    names = [name for name in graph.names if not any(fnmatchcase(name, pattern) for pattern in config.exclude)]
    if not names:
        raise RequirementError("no linear or convolutional layer is left to quantize", remedy="shorten `exclude`")
    return names


def _calibrated(
    config: QatConfig,
    folded: nn.Module,
    outputs: Mapping[str, bool],
    samples: Samples,
    parent: Artifact,
) -> CalibrationTable:
    """The ranges of all layers on the samples; of their results, where these may be rounded.

    Raises:
        NumericalError: activations are not finite; each such tensor is named.
    """
    calibration = config.calibration
    options: dict[str, Any] = {"percentile": calibration.percentile} if calibration.observer == "percentile" else {}
    ranges = Ranges(lambda: observer(calibration.observer, **options))

    def run() -> None:
        for batch in samples.batches("calibrate"):
            tensors = tensors_from_batch(batch, device_of(folded))
            folded(**{name: tensors[name] for name in samples.dataset.input_names})

    run_watched(folded, outputs, run, ranges.see)
    if ranges.not_finite:
        lines = "\n".join(f"    {name}: {why}" for name, why in ranges.not_finite.items())
        raise NumericalError(
            f"activations are not finite:\n{lines}", remedy="look for NaN in the samples, and for weights that overflow"
        )
    symmetric, from_zero = Grid(bits=config.activation_bits), Grid(bits=config.activation_bits, nonnegative=True)
    return CalibrationTable(
        model=parent.manifest.id,
        observer=calibration.observer,
        bits=config.activation_bits,
        num_samples=len(samples),
        samples_sha256=samples.digest,
        tensors={
            name: Range(
                values=one.count,
                minimum=float(one.minimum_C[0]),
                maximum=float(one.maximum_C[0]),
                bound=float(one.bound(symmetric.highest)[0]),
                bound_from_zero=float(one.bound(from_zero.highest)[0]) if one.minimum_C[0] >= 0 else None,
            )
            for name, one in ranges.observers.items()
        },
    )


def _check_table(table: CalibrationTable, names: Collection[str], config: QatConfig, folded: nn.Module) -> None:
    """Every layer was reached, by something else than a constant.

    Raises:
        RequirementError: names each that was not.
    """
    problems = []
    for name in names:
        found = table.tensors.get(f"{name}:input")
        if found is None:
            problems.append(f"{name}: no sample reaches it")
        elif found.minimum == found.maximum:
            problems.append(f"{name}: its input is always {found.minimum:g}")
        elif _rounds_result(config, folded.get_submodule(name)) and f"{name}:output" not in table.tensors:
            problems.append(f"{name}: the table has no range of its result, which the target {config.target} needs")
    if problems:
        raise RequirementError(
            "no range can be found for the input of these layers:\n" + "\n".join(f"    {one}" for one in problems),
            remedy="calibrate on samples that use them, or name them in `exclude`",
        )
