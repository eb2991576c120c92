"""Empirical bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

Shapes: O output channels, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks, select_valid
from compressor.models.capabilities.valid_positions import PositionMask
from compressor.models.quantized.fake_quantization import IntegerLayer


@torch.no_grad()
def correct_biases(
    module: nn.Module,
    teacher: nn.Module,
    batch: Mapping[str, Tensor],
    mask: PositionMask | None = None,
) -> int:
    """Shift the bias of each integer layer so that its mean output equals the float layer's.

    The biases are changed in place, in one forward pass over one batch: a layer is corrected before
    its output is used, so that later layers also compensate for what remains of earlier errors.
    Layers without a bias are skipped, and layers that are called more than once, because one bias
    cannot correct several calls.

    Args:
        module: The quantized model, in eval mode.
        teacher: The float model with folded normalizations, in eval mode.
        batch: Model inputs.
        mask: Positions that are not padding; None if all are valid.

    Returns:
        The number of layers that were corrected.
    """
    layers = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, IntegerLayer)
    }
    float_means: dict[str, list[Tensor]] = {name: [] for name in layers}

    def record(name: str, _: tuple[Any, ...], output: Tensor) -> None:
        layer = teacher.get_submodule(name)
        float_means[name].append(_channel_means(layer, output, mask))

    with forward_hooks(teacher, layers, after=record):
        teacher(**batch)
    correctable = {
        name: layer
        for name, layer in layers.items()
        if len(float_means[name]) == 1 and layer.layer.bias is not None
    }

    def correct(name: str, inputs: tuple[Any, ...]) -> None:
        layer = correctable[name].layer
        output = correctable[name].product(inputs[0])
        shift_O = float_means[name][0] - _channel_means(layer, output, mask)
        if layer.bias is not None:
            layer.bias += shift_O

    with forward_hooks(module, correctable, before=correct):
        module(**batch)
    return len(correctable)


def _channel_means(layer: nn.Module, output: Tensor, mask: PositionMask | None) -> Tensor:
    """Return the mean of each output channel at valid positions, [O]."""
    is_linear = isinstance(layer, nn.Linear)
    output = select_valid(output, mask, channels_first=not is_linear)
    channels = -1 if is_linear else 1
    return output.movedim(channels, 0).flatten(1).mean(dim=1)
