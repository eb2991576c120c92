"""Channels that reach far beyond all others are scaled down before a layer rounds its input.

Shapes: I input channels of a layer, O its outputs, P positions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.capture import select_valid, observe_layers
from compressor.models.capabilities.valid_positions import ValidPositions
from compressor.models.quantized.fake_quantization import multiply_input


@dataclass(slots=True)
class _Seen:
    """Of the input of a layer."""

    largest_I: Tensor
    squares: float = 0.0
    values: int = 0

    def add(self, x: Tensor) -> None:
        x_PI = x.flatten(0, -2)
        self.largest_I = torch.maximum(self.largest_I, x_PI.abs().amax(dim=0))
        self.squares += float(x_PI.double().square().sum())
        self.values += x_PI.numel()


@torch.no_grad()
def smooth(
    module: nn.Module,
    names: Collection[str],
    batches: Iterable[Mapping[str, Tensor]],
    positions: ValidPositions,
    deviations: float,
) -> tuple[str, ...]:
    """Divide outlying channels of the inputs of linear layers, and multiply the weights by as much, in place.

    As SmoothQuant (Xiao et al. 2023), but only where a channel's largest magnitude is beyond so many root mean squares of the
    whole input, and to there: weights of other channels stay as they are. Layers that read the same values divide them alike.

    Args:
        module: computes as before, but for the order of its sums.
        names: of the layers that may be smoothed.
        batches: the model's inputs.
        positions: the positions that are not padding.
        deviations: how far a channel may reach.

    Returns:
        Which layers were smoothed.
    """
    layers = {
        name: one for name in names if isinstance(one := module.get_submodule(name), nn.Linear)
    }
    seen = {
        name: _Seen(torch.zeros(one.in_features, device=one.weight.device))
        for name, one in layers.items()
    }
    meant: Tensor | None = None

    def see(tensor: str, values: Tensor) -> None:
        seen[tensor.removesuffix(":input")].add(select_valid(values, meant))

    def run() -> None:
        nonlocal meant
        for batch in batches:
            meant = positions.mask(batch)
            module(**batch)

    observe_layers(module, dict.fromkeys(layers, False), run, see)
    smoothed = []
    for name, layer in layers.items():
        allowed = deviations * (seen[name].squares / max(seen[name].values, 1)) ** 0.5
        beyond_I = seen[name].largest_I > allowed
        if allowed > 0 and beyond_I.any():
            factor_I = torch.where(beyond_I, allowed / seen[name].largest_I, 1.0)
            layer.weight /= factor_I
            multiply_input(layer, factor_I)
            smoothed.append(name)
    return tuple(smoothed)
