"""Modules that simulate integer arithmetic in float: values are rounded to a grid before use.

Shapes: O output channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.models.quantized.folded_norms import without_norm
from compressor.models.quantized.quantization import Grid, Quantization, QuantizedLayer

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
INPUT = "input_rounding"
"""Name of the submodule that quantizes the first input of a module."""
FACTOR = "input_factor"
"""Name of the buffer [channels] that the input of a layer is multiplied by."""
_SCALE_MOMENTUM = 0.01
"""Step of the moving average of activation scales."""


@torch.library.custom_op("autoglm_compress::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, axis: int, lowest: int, highest: int) -> Tensor:
    """Return ``x`` rounded to a grid; a custom operator, so that exporters see it as one node.

    Args:
        x: float.
        scale: scalar, or one scale per index of ``x`` along ``axis``.
        axis: axis of the scales; -1 for a scalar scale.
        lowest: smallest integer of the grid.
        highest: largest integer of the grid.
    """
    if axis < 0:
        return torch.fake_quantize_per_tensor_affine(x, float(scale), 0, lowest, highest)
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
    return torch.fake_quantize_per_channel_affine(x, scale, zeros, axis, lowest, highest)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, axis: int, lowest: int, highest: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


class FakeQuantizer(nn.Module):
    """Round to a grid in the forward pass; pass the gradient straight through (Bengio et al. 2013).

    A scale that is trained has the gradient of LSQ (Esser et al. 2020, equation 3), taken of its
    logarithm (Jain et al. 2020), because AdamW's steps are equally long for small and large scales.
    """

    def __init__(self, grid: Grid, channels: int | None = None, *, last: bool = False) -> None:
        """Create the scales, all 1.

        Args:
            grid: the integers.
            channels: number of scales; None for one scale for the whole tensor.
            last: place the scales along the last axis instead of the first.
        """
        super().__init__()
        self.grid = grid
        self.channels = channels
        self.last = last
        self.log2_scale = nn.Parameter(
            torch.zeros(() if channels is None else channels), requires_grad=False
        )
        self.follows = False
        """Let the scale follow the largest magnitude in training: at once for weights, by a
        moving average for activations."""

    @property
    def scale(self) -> Tensor:
        """Scalar, or one scale per channel."""
        fixed = self._buffers.get("fixed_scale")
        return self.log2_scale.exp2() if fixed is None else fixed

    def fix(self) -> None:
        """Store the scale as a constant, which exporters write into the graph as it is."""
        self.register_buffer("fixed_scale", self.scale.detach(), persistent=False)

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Set the scalar, or one scale per channel."""
        self.log2_scale.copy_(scale.log2())

    def is_sound(self) -> bool:
        """Return True if every scale is finite and positive."""
        return bool((self.scale.isfinite() & (self.scale > 0)).all())

    def _axis(self, x: Tensor) -> int:
        if self.channels is None:
            return -1
        return x.ndim - 1 if self.last else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid."""
        axis = self._axis(x)
        if self.follows and self.training:
            self._follow(x)
        if not torch.is_grad_enabled() or torch.compiler.is_exporting():
            rounded: Tensor = fake_quantize(
                x, self.scale, axis, self.grid.lowest, self.grid.highest
            )
            return rounded
        scale = self.scale
        if axis >= 0:
            scale = scale.view(-1, *(1,) * (x.ndim - 1 - axis))
        clipped = (x / scale).clamp(self.grid.lowest, self.grid.highest)
        return (clipped + (clipped.round() - clipped).detach()) * scale

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        axis = self._axis(x)
        if axis < 0:
            high, low = x.amax(), x.amin()
        else:
            channels = x.movedim(axis, 0).flatten(1)
            high, low = channels.amax(dim=1), channels.amin(dim=1)
        target = high / self.grid.highest
        if self.grid.lowest < 0:
            target = torch.maximum(target, low / self.grid.lowest)
        target = target.clamp(min=torch.finfo(torch.float32).tiny)
        if self.channels is None:
            target = torch.lerp(self.scale, target, _SCALE_MOMENTUM)
        self.set_scale(target)


class _Wrapper(nn.Module):
    """A module around a layer, with the attributes of the layer.

    Models read attributes of their layers, such as ``weight.dtype``.
    """

    layer: nn.Module

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the layer where this module has none of that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":  # before it is set
                raise
            return getattr(super().__getattr__("layer"), name)


class IntegerLayer(_Wrapper):
    """A layer whose weight, input and, optionally, output lie on grids."""

    layer: Layer

    def __init__(self, layer: Layer, quantized: QuantizedLayer) -> None:
        super().__init__()
        self.layer = layer
        self.input_grid = FakeQuantizer(quantized.input) if quantized.input is not None else None
        self.weight_grid = FakeQuantizer(quantized.weight, len(layer.weight))
        self.output_grid = FakeQuantizer(quantized.output) if quantized.output is not None else None
        self.active = True
        """If False, compute in float."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer."""
        if not self.active:
            return cast("Tensor", self.layer(x))
        y = self.product(x)
        return y if self.output_grid is None else cast("Tensor", self.output_grid(y))

    def product(self, x: Tensor) -> Tensor:
        """Return the output before it is rounded itself."""
        x = _scaled(self.layer, x)
        x = x if self.input_grid is None else self.input_grid(x)
        weight = self.weight_grid(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight, self.layer.bias)
        return cast("Tensor", self.layer._conv_forward(x, weight, self.layer.bias))


class IntegerEmbedding(_Wrapper):
    """An embedding whose weight lies on grids, one per column.

    The rows that are looked up are rounded, which equals looking up rounded rows.
    """

    layer: nn.Embedding

    def __init__(self, layer: nn.Embedding, grid: Grid) -> None:
        super().__init__()
        self.layer = layer
        self.weight_grid = FakeQuantizer(grid, layer.embedding_dim, last=True)
        self.active = True
        """If False, look up float rows."""

    def forward(self, index: Tensor) -> Tensor:
        """Return the rows."""
        rows = self.layer(index)
        return cast("Tensor", self.weight_grid(rows) if self.active else rows)


def insert_fake_quantization(module: nn.Module, quantization: Quantization) -> nn.Module:
    """Give a float module the structure of a quantized one, in place; tensors are not set.

    Raises:
        ModelError: the module lacks some of the layers.
    """
    check_layers(module, quantization)
    for name, norm in quantization.norms().items():
        layer = cast("Layer", module.get_submodule(name))
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
        replace_module(module, norm, without_norm(module.get_submodule(norm)))
    return insert_grids(module, quantization)


def check_layers(module: nn.Module, quantization: Quantization) -> None:
    """Check that a float module has the layers that have grids.

    Raises:
        ModelError: the module lacks some of them; the message names all.
    """
    modules = dict(module.named_modules())
    if unknown := _unknown_layers(modules, quantization, quantization.norms()):
        raise ModelError(
            "quantization.json names layers that config.json does not describe: "
            f"{', '.join(sorted(unknown))}",
            remedy="take both from the same model",
        )


def insert_grids(module: nn.Module, quantization: Quantization) -> nn.Module:
    """Let the layers of a module with folded normalizations round their operands, in place.

    Scales are 1, and so are the factors of smoothed inputs.
    """
    modules = dict(module.named_modules())
    for name in quantization.smoothed:
        scale_input(modules[name], torch.ones(cast("nn.Linear", modules[name]).in_features))
    for name, quantized in quantization.layers.items():
        replace_module(module, name, IntegerLayer(cast("Layer", modules[name]), quantized))
    for name, grid in quantization.embeddings.items():
        replace_module(module, name, IntegerEmbedding(cast("nn.Embedding", modules[name]), grid))
    for name, grid in quantization.inputs.items():
        quantize_input(modules[name], grid)
    return module


def _unknown_layers(
    modules: Mapping[str, nn.Module], quantization: Quantization, norms: Mapping[str, str]
) -> list[str]:
    """Return the names in ``quantization`` that are no module, or one of another type."""
    types: tuple[tuple[Collection[str], tuple[type[nn.Module], ...]], ...] = (
        (quantization.layers, LAYERS),
        (norms.values(), NORMS),
        (quantization.smoothed, (nn.Linear,)),
        (quantization.inputs, (nn.Module,)),
        (quantization.embeddings, (nn.Embedding,)),
    )
    return [
        name
        for names, expected in types
        for name in names
        if not isinstance(modules.get(name), expected)
    ]


def quantize_input(module: nn.Module, grid: Grid) -> FakeQuantizer:
    """Let a module round its first input to a grid, and return the quantizer."""
    quantizer = FakeQuantizer(grid)
    module.add_module(INPUT, quantizer)
    module.register_forward_pre_hook(_quantize_first)
    return quantizer


def scale_input(layer: nn.Module, factor: Tensor) -> None:
    """Let a layer multiply its input by a factor per channel."""
    layer.register_buffer(FACTOR, factor)
    layer.register_forward_pre_hook(_scale_first)


def _scaled(layer: nn.Module, x: Tensor) -> Tensor:
    factor = layer._buffers.get(FACTOR)
    return x if factor is None else x * factor


# The hooks look up the factor and the quantizer in the module that they are called for: it may be
# a copy of the one that they were registered on.
def _scale_first(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_scaled(layer, args[0]), *args[1:])


def _quantize_first(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (module.get_submodule(INPUT)(args[0]), *args[1:])


@torch.no_grad()
def fold_norms(module: nn.Module, norms: Mapping[str, str]) -> None:
    """Fold batch normalizations, in eval mode, into the layers before them, in place.

    See Jacob et al. 2018, section 3.2.

    Args:
        module: the module that holds them.
        norms: name of a layer to the name of its normalization.
    """
    for name, norm_name in norms.items():
        layer = cast("Layer", module.get_submodule(name))
        norm = cast("nn.BatchNorm2d", module.get_submodule(norm_name))
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        factor_O = norm.weight / (variance + norm.eps).sqrt()
        bias_O = torch.zeros_like(mean) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter(norm.bias + (bias_O - mean) * factor_O)
        # Not in place: the weight may be mapped from a file.
        layer.weight.data = layer.weight * factor_O.view(-1, *(1,) * (layer.weight.ndim - 1))
        replace_module(module, norm_name, without_norm(norm))


def replace_module(module: nn.Module, name: str, replacement: nn.Module) -> None:
    """Replace a submodule by name."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, replacement)
