"""Scaling of outlier input channels, a variant of SmoothQuant (Xiao et al. 2023, arXiv:2211.10438).

Shapes: I input channels, P positions, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.capture import observe_layers, select_valid
from compressor.models.capabilities.valid_positions import PositionMask, ValidPositions
from compressor.models.quantized.fake_quantization import scale_input


@dataclass(slots=True)
class _InputStatistics:
    """Statistics of the input of one layer over all batches."""

    largest_I: Tensor
    """Largest magnitude of each channel."""
    squares: float = 0.0
    """Sum of the squares of all values."""
    values: int = 0
    """Number of values."""

    def update(self, x: Tensor) -> None:
        x_PI = x.flatten(0, -2)
        self.largest_I = torch.maximum(self.largest_I, x_PI.abs().amax(dim=0))
        self.squares += float(x_PI.double().square().sum())
        self.values += x_PI.numel()

    def factors(self, deviations: float) -> Tensor | None:
        """Return the factor of each channel, [I]; None if no channel is an outlier."""
        limit = deviations * (self.squares / max(self.values, 1)) ** 0.5
        outlier_I = self.largest_I > limit
        if not (limit > 0 and outlier_I.any()):
            return None
        return torch.where(outlier_I, limit / self.largest_I, 1.0)


@torch.no_grad()
def smooth_inputs(
    module: nn.Module,
    names: Collection[str],
    batches: Iterable[Mapping[str, Tensor]],
    positions: ValidPositions,
    deviations: float,
) -> tuple[str, ...]:
    """Scale outlier input channels of linear layers down and their weights up, in place.

    Unlike SmoothQuant, only channels whose largest magnitude exceeds a limit are scaled, down to
    the limit; the weights of other channels stay as they are. The limit is a multiple of the root
    mean square of the whole input. Layers that read the same values scale them equally.

    Args:
        module: The model; its outputs change only by float rounding.
        names: Names of the layers that may be smoothed; those that are not linear are skipped.
        batches: Model inputs.
        positions: Positions of the batches that are not padding.
        deviations: The limit, in root mean squares of the input.

    Returns:
        The names of the layers that were smoothed.
    """
    layers = {
        name: layer for name in names if isinstance(layer := module.get_submodule(name), nn.Linear)
    }
    statistics = {
        name: _InputStatistics(torch.zeros(layer.in_features, device=layer.weight.device))
        for name, layer in layers.items()
    }
    mask: PositionMask | None = None

    def observe(tensor: str, values: Tensor) -> None:
        statistics[tensor.removesuffix(":input")].update(select_valid(values, mask))

    def run() -> None:
        nonlocal mask
        for batch in batches:
            mask = positions.mask(batch)
            module(**batch)

    observe_layers(module, dict.fromkeys(layers, False), run, observe)
    smoothed = []
    for name, layer in layers.items():
        factor_I = statistics[name].factors(deviations)
        if factor_I is not None:
            layer.weight /= factor_I
            scale_input(layer, factor_I)
            smoothed.append(name)
    return tuple(smoothed)
