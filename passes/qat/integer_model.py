"""Models with integer layers, built from a float model with folded normalizations."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from calibration.grids import activation_grid, activation_scale, weight_scales
from calibration.table import CalibrationTable, Range
from compressor.models.capabilities.quantizable_layers import LayerContext, QuantizableLayers
from compressor.models.capabilities.valid_positions import PositionMask
from compressor.models.quantized.fake_quantization import (
    IntegerEmbedding,
    IntegerLayer,
    Layer,
    quantize_input,
    replace_module,
)
from compressor.models.quantized.quantization import Grid, Quantization, QuantizedLayer
from passes.common.device import device_of
from passes.qat.bias_correction import correct_biases
from passes.qat.config import QatConfig
from passes.qat.ranges import rounds_output


@dataclass(frozen=True, slots=True)
class FoldedModel:
    """The float model that is quantized."""

    module: nn.Module
    norms: Mapping[str, str]
    """Layer to the batch normalization that was folded into it."""
    smoothed: tuple[str, ...]
    """Layers whose input channels were scaled."""


@dataclass(frozen=True, slots=True)
class BiasSamples:
    """Samples on which biases are corrected."""

    batch: Mapping[str, Tensor]
    """Model inputs."""
    mask: PositionMask | None
    """Positions that are not padding; None if all are valid."""


@dataclass(frozen=True, slots=True)
class IntegerModelBuilder:
    """Builder of models in which some of the layers are integer."""

    config: QatConfig
    layers: QuantizableLayers
    folded: FoldedModel
    table: CalibrationTable
    embeddings: tuple[str, ...]
    """Embedding tables that are integer."""
    samples: BiasSamples

    def quantization(
        self, integer: Collection[str], float_layers: Mapping[str, str]
    ) -> Quantization:
        """Return the grids of the model in which the layers ``integer`` are integer.

        Args:
            integer: Names of layers.
            float_layers: The other layers, and the reason why they stay in float.
        """
        return self._quantization(integer, float_layers, self.layers.contexts(integer))

    def build(self, integer: Collection[str]) -> nn.Module:
        """Return the model with calibrated scales, and with ``bias_correction`` corrected biases.

        Args:
            integer: Names of the layers that are integer; the others stay in float.
        """
        module = self.build_uncorrected(integer)
        if self.config.bias_correction:
            samples = self.samples
            correct_biases(module, self.folded.module, samples.batch, samples.mask)
        return module

    def build_uncorrected(self, integer: Collection[str]) -> nn.Module:
        """Return the model with calibrated scales and the biases of the float model."""
        module = copy.deepcopy(self.folded.module)
        contexts = self.layers.contexts(integer)
        quantization = self._quantization(integer, {}, contexts)
        for name, quantized in quantization.layers.items():
            layer = IntegerLayer(cast("Layer", module.get_submodule(name)), quantized)
            layer.weight_grid.set_scale(
                weight_scales(layer.layer.weight, quantized.weight, self.config.weight_observer)
            )
            range_ = self.table.tensors[f"{name}:input"]
            if quantized.input is not None and layer.input_grid is not None:
                layer.input_grid.set_scale(activation_scale(range_, quantized.input))
            elif (around := contexts[name].around) is not None:
                grid = quantization.inputs[around]
                quantizer = quantize_input(module.get_submodule(around), grid)
                quantizer.set_scale(activation_scale(range_, grid))
            if quantized.output is not None and layer.output_grid is not None:
                range_ = self.table.tensors[f"{name}:output"]
                layer.output_grid.set_scale(activation_scale(range_, quantized.output))
            replace_module(module, name, layer.to(device_of(module)))
        quantize_embeddings(module, quantization.embeddings)
        return module.eval()

    def _quantization(
        self,
        integer: Collection[str],
        float_layers: Mapping[str, str],
        contexts: Mapping[str, LayerContext],
    ) -> Quantization:
        layers = {
            name: self._quantized_layer(name, contexts[name])
            for name in self.layers.names
            if name in integer
        }
        inputs = {
            str(contexts[name].around): self._input_grid(name, contexts[name])
            for name in layers
            if self._rounds_module_input(contexts[name])
        }
        return Quantization(
            target=self.config.target,
            layers=layers,
            inputs=inputs,
            embeddings={name: Grid(bits=self.config.weight_bits) for name in self.embeddings},
            smoothed=self.folded.smoothed,
            folded={name: norm for name, norm in self.folded.norms.items() if name not in layers},
            kept_float=dict(float_layers),
        )

    def _quantized_layer(self, name: str, context: LayerContext) -> QuantizedLayer:
        output = None
        layer = self.folded.module.get_submodule(name)
        if rounds_output(self.config, layer) and not context.rounded:
            range_ = self.table.tensors[f"{name}:output"]
            output = self._grid(range_, nonnegative=context.clipped)
        return QuantizedLayer(
            weight=Grid(bits=self.config.weight_bits),
            input=None if self._rounds_module_input(context) else self._input_grid(name, context),
            output=output,
            norm=context.norm,
        )

    def _input_grid(self, name: str, context: LayerContext) -> Grid:
        range_ = self.table.tensors[f"{name}:input"]
        return self._grid(range_, nonnegative=context.nonnegative)

    def _grid(self, range_: Range, *, nonnegative: bool) -> Grid:
        """Return a grid for the target; zero-points other than 0 are not supported by TensorRT."""
        has_zero_points = self.config.target == "onnxruntime"
        return activation_grid(
            range_,
            self.config.activation_bits,
            nonnegative=nonnegative and has_zero_points,
            symmetric=not has_zero_points,
        )

    def _rounds_module_input(self, context: LayerContext) -> bool:
        """Return True if the module around the layer rounds the input, for layer and residual.

        ONNX Runtime adds integers if both operands are integers. Otherwise the sum is computed in
        float, in another memory layout.
        """
        return self.config.target == "onnxruntime" and context.around is not None


def quantize_embeddings(module: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Round embedding tables to their grids, in place.

    The scales cover all values: a clipped row would be wrong on its own, where clipped weights of
    a matrix product are only parts of a sum.
    """
    for name, grid in grids.items():
        embedding = IntegerEmbedding(cast("nn.Embedding", module.get_submodule(name)), grid)
        weight = embedding.layer.weight
        embedding.weight_grid.set_scale(weight_scales(weight.T, grid, "min-max"))
        replace_module(module, name, embedding.to(weight.device))
