"""Models whose layers multiply integers, computed in float: every value is rounded to its grid before it is used.

Shapes: O output channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.models.quantized.quantization import Grid, Quantization, QuantizedLayer

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
INPUT = "input_rounding"
"""The name of what rounds a module's first input, in it."""
FACTOR = "input_factor"
"""The name of what a layer's input is multiplied by, in it: [channels]."""
_FOLLOWING = 0.01
"""Part of the way that a scale goes at a step."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.library.custom_op("autoglm_compress::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, axis: int, lowest: int, highest: int) -> Tensor:
    """``x`` on its grid. An operator of its own, so that an exporter meets it whole.

    Args:
        x: float.
        scale: one, or one for each index of ``x`` along ``axis``.
        axis: of the scales; -1 where there is one.
        lowest: integer of the grid.
        highest: integer of the grid.
    """
    if axis < 0:
        return torch.fake_quantize_per_tensor_affine(x, float(scale), 0, lowest, highest)
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
    return torch.fake_quantize_per_channel_affine(x, scale, zeros, axis, lowest, highest)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, axis: int, lowest: int, highest: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


class Rounding(nn.Module):
    """Rounds to a grid; the gradient passes through as if it did not (straight-through, Bengio et al. 2013).

    Where the scale learns, its gradient is that of LSQ (Esser et al. 2020, equation 3), of its logarithm (Jain et al. 2020),
    because the steps of AdamW are as long for small scales as for large ones.
    """

    def __init__(self, grid: Grid, channels: int | None = None, *, last: bool = False) -> None:
        super().__init__()
        self.grid = grid
        self.channels = channels
        self.last = last
        """Scales are those of the last axis; otherwise, where there are several, of the first."""
        self.log2_scale = nn.Parameter(
            torch.zeros(() if channels is None else channels), requires_grad=False
        )
        self.follows = False
        """While training: the scale follows the largest magnitude; of weights at once, of activations by a moving average."""

    @property
    def scale(self) -> Tensor:
        """One, or one for each output channel."""
        fixed = self._buffers.get("fixed_scale")
        return self.log2_scale.exp2() if fixed is None else fixed

    def fix(self) -> None:
        """Hold the scale as a constant from now on, for an exporter to find it whole."""
        self.register_buffer("fixed_scale", self.scale.detach(), persistent=False)

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Set one, or one for each output channel."""
        self.log2_scale.copy_(scale.log2())

    def is_sound(self) -> bool:
        """Whether every scale is a number above 0."""
        return bool((self.scale.isfinite() & (self.scale > 0)).all())

    def _axis(self, x: Tensor) -> int:
        if self.channels is None:
            return -1
        return x.ndim - 1 if self.last else 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
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
        parts = x if axis < 0 else x.movedim(axis, 0).flatten(1)
        high, low = (
            (parts.amax(), parts.amin()) if axis < 0 else (parts.amax(dim=1), parts.amin(dim=1))
        )
        wanted = high / self.grid.highest
        if self.grid.lowest < 0:
            wanted = torch.maximum(wanted, low / self.grid.lowest)
        wanted = wanted.clamp(min=torch.finfo(torch.float32).tiny)
        self.set_scale(
            wanted if self.channels is not None else torch.lerp(self.scale, wanted, _FOLLOWING)
        )


class IntegerLayer(nn.Module):
    """A layer whose input and weight, and maybe output, lie on grids."""

    def __init__(self, layer: Layer, quantized: QuantizedLayer) -> None:
        super().__init__()
        self.layer = layer
        self.input_grid = Rounding(quantized.input) if quantized.input is not None else None
        self.weight_grid = Rounding(quantized.weight, len(layer.weight))
        self.output_grid = Rounding(quantized.output) if quantized.output is not None else None
        self.active = True
        """Otherwise it computes in float."""

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        if not self.active:
            return cast("Tensor", self.layer(x))
        y = self.product(x)
        return y if self.output_grid is None else cast("Tensor", self.output_grid(y))

    def product(self, x: Tensor) -> Tensor:
        """The result before it is rounded itself."""
        x = _multiplied(self.layer, x)
        x = x if self.input_grid is None else self.input_grid(x)
        weight = self.weight_grid(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight, self.layer.bias)
        return cast("Tensor", self.layer._conv_forward(x, weight, self.layer.bias))


class IntegerEmbedding(nn.Module):
    """A table whose rows lie on grids, one for each column; what is looked up is rounded, which is the same."""

    def __init__(self, layer: nn.Embedding, grid: Grid) -> None:
        super().__init__()
        self.layer = layer
        self.weight_grid = Rounding(grid, layer.embedding_dim, last=True)
        self.active = True
        """Otherwise it looks up floats."""

    def forward(self, index: Tensor) -> Tensor:
        """As the table's own."""
        rows = self.layer(index)
        return cast("Tensor", self.weight_grid(rows) if self.active else rows)


def shaped(module: nn.Module, quantization: Quantization) -> nn.Module:
    """A float module of a family with the shape of a quantized one, in place; its tensors mean nothing yet.

    Raises:
        ModelError: it has no such layers.
    """
    norms = {
        name: one.norm for name, one in quantization.layers.items() if one.norm
    } | quantization.folded
    modules = dict(module.named_modules())
    wrong = [name for name in quantization.layers if not isinstance(modules.get(name), LAYERS)]
    wrong += [name for name in norms.values() if not isinstance(modules.get(name), NORMS)]
    wrong += [
        name for name in quantization.smoothed if not isinstance(modules.get(name), nn.Linear)
    ]
    wrong += [name for name in quantization.inputs if name not in modules]
    wrong += [
        name for name in quantization.embeddings if not isinstance(modules.get(name), nn.Embedding)
    ]
    if wrong:
        raise ModelError(
            f"quantization.json names layers that config.json does not describe: {', '.join(sorted(wrong))}",
            remedy="take both from the same model",
        )
    for name, norm in norms.items():
        layer = cast("Layer", module.get_submodule(name))
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
        replace(module, norm, nn.Identity())
    for name in quantization.smoothed:
        multiply_input(modules[name], torch.ones(cast("nn.Linear", modules[name]).in_features))
    for name, one in quantization.layers.items():
        replace(module, name, IntegerLayer(cast("Layer", modules[name]), one))
    for name, grid in quantization.embeddings.items():
        replace(module, name, IntegerEmbedding(cast("nn.Embedding", modules[name]), grid))
    for name, grid in quantization.inputs.items():
        round_input(modules[name], grid)
    return module


def round_input(module: nn.Module, grid: Grid) -> Rounding:
    """Have a module round its first input before anything else."""
    rounding = Rounding(grid)
    module.add_module(INPUT, rounding)
    module.register_forward_pre_hook(_rounded_first)
    return rounding


def multiply_input(layer: nn.Module, factor: Tensor) -> None:
    """Have a layer multiply its input, channel by channel, before anything else."""
    layer.register_buffer(FACTOR, factor)
    layer.register_forward_pre_hook(_multiplied_first)


def _multiplied(layer: nn.Module, x: Tensor) -> Tensor:
    factor = layer._buffers.get(FACTOR)
    return x if factor is None else x * factor


def _multiplied_first(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Finds the factor in the layer that it is called for, which may be a copy."""
    return (_multiplied(layer, args[0]), *args[1:])


def _rounded_first(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Finds the rounding in the module that it is called for, which may be a copy."""
    return (module.get_submodule(INPUT)(args[0]), *args[1:])


@torch.no_grad()
def fold(module: nn.Module, norms: Mapping[str, str]) -> None:
    """Scale and shift of batch normalizations, in eval mode, into the layers before them, in place (Jacob et al. 2018, 3.2).

    Args:
        module: holds them all.
        norms: name of the layer to that of its normalization.
    """
    for name, norm_name in norms.items():
        layer = cast("Layer", module.get_submodule(name))
        norm = cast("nn.BatchNorm2d", module.get_submodule(norm_name))
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        factor_O = norm.weight / (variance + norm.eps).sqrt()
        before_O = torch.zeros_like(mean) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter(norm.bias + (before_O - mean) * factor_O)
        layer.weight.mul_(factor_O.view(-1, *(1,) * (layer.weight.ndim - 1)))
        replace(module, norm_name, nn.Identity())


def replace(module: nn.Module, name: str, by: nn.Module) -> None:
    """Put another module in the place of the one that is called so."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, by)
