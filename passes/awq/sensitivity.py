"""Mixed precision: how much rounding each site changes its decoder layer, and bits per site.

A site is a group of linear layers that read the same input; consumers fuse them, so they are
packed with the same bits. Shapes: B samples, T positions, C hidden width, N = B·T, P valid
positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compressor.models.capabilities.linear_groups import Site
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.activations import flatten_positions
from passes.awq.linear_layers import get_linear
from passes.common.weight_rounding.grids import ScaleFormat, round_to_nearest, search_grids

_SCALES = ScaleFormat(torch.float16)

if TYPE_CHECKING:
    from compressor.models.families.transformers.layer_recording import LayerArguments
    from compressor.models.families.transformers.streaming import StreamedCheckpoint
    from passes.awq.layer_sites import LayerSites


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """One calibration batch where it enters the decoder."""

    hidden_BTC: Tensor
    """Input of the first layer."""
    arguments: Sequence[LayerArguments]
    """Further arguments of each layer."""
    valid_N: Tensor | None
    """Valid positions, bool; None if all are valid."""


@dataclass(frozen=True, slots=True)
class SiteSensitivity:
    """Cost and loss of a site of one decoder layer on each candidate grid."""

    layer: int
    site: str
    bits: Mapping[WeightGrid, float]
    """Bits of all its weights, scales and zero-points included."""
    loss: Mapping[WeightGrid, float]
    """Mean squared change of the layer's result if the site is rounded to nearest, divided by the
    mean square of the result."""


def measure_sensitivity(
    checkpoint: StreamedCheckpoint,
    sites: LayerSites,
    batch: FirstBatch,
    progress: Callable[[int, int], None],
) -> list[SiteSensitivity]:
    """Run each float decoder layer, and again with one of its sites rounded at a time.

    Args:
        checkpoint: the parent.
        sites: finds the sites of a layer, with their candidate grids.
        batch: the samples to measure on.
        progress: called with the number of layers done and of all layers.
    """
    from compressor.models.families.transformers.layer_recording import run_layer
    from passes.awq.layer_sites import run_observed

    sensitivities = []
    hidden_BTC = batch.hidden_BTC
    for number, arguments in enumerate(batch.arguments):
        name = f"{checkpoint.layers_name}.{number}"
        layer = checkpoint.load(name)
        found = sites.find(name, layer, run_observed(layer, hidden_BTC, arguments))
        result_BTC = run_layer(layer, hidden_BTC, arguments)
        float_PC = _select_valid(result_BTC, batch.valid_N)
        size = float(float_PC.square().mean())
        for site, grids in [(gridded.site, gridded.grids) for gridded in found]:
            losses, bits = {}, {}
            for grid, fitted in grids.items():
                float_weights = {
                    linear: get_linear(layer, linear).weight.data for linear in site.linears
                }
                bits[grid] = round_site(layer, site, fitted)
                rounded_BTC = run_layer(layer, hidden_BTC, arguments)
                rounded_PC = _select_valid(rounded_BTC, batch.valid_N)
                losses[grid] = float((rounded_PC - float_PC).square().mean()) / size
                for linear, weight_OI in float_weights.items():
                    get_linear(layer, linear).weight.data = weight_OI
            sensitivities.append(SiteSensitivity(number, site.name, bits, losses))
        hidden_BTC = result_BTC
        checkpoint.unload(name)
        progress(number + 1, len(batch.arguments))
    return sensitivities


def _select_valid(result_BTC: Tensor, valid_N: Tensor | None) -> Tensor:
    """Return the valid positions of a layer's result, [P, C]."""
    result_NC = flatten_positions(result_BTC)
    return result_NC if valid_N is None else result_NC[valid_N]


def round_site(layer: nn.Module, site: Site, grid: WeightGrid) -> float:
    """Round the weights of a site to nearest, and return their bits on the grid."""
    bits = 0.0
    for name in site.linears:
        linear = get_linear(layer, name)
        weight_IO = linear.weight.data.T.contiguous()
        importance_I = torch.ones(len(weight_IO))
        grids = search_grids(weight_IO, importance_I, grid, _SCALES, candidates=1)
        linear.weight.data = round_to_nearest(weight_IO, grids).T.contiguous()
        bits += weight_IO.numel() * grid.effective_bits(len(weight_IO))
    return bits


def allocate_bits(sensitivities: Sequence[SiteSensitivity], budget: float) -> list[WeightGrid]:
    """Choose the grid of each site greedily.

    Starts with the cheapest grids and repeats the exchange that lowers the loss most per bit.

    Args:
        sensitivities: of all sites of all layers.
        budget: bits of all sites together.

    Returns:
        A grid for each of ``sensitivities``. They take at most ``budget`` bits, unless the cheapest
        grids already take more.
    """
    chosen = [min(site.bits, key=lambda grid: site.bits[grid]) for site in sensitivities]
    free = budget - sum(site.bits[grid] for site, grid in zip(sensitivities, chosen, strict=True))
    while True:
        exchanges = [
            (
                (site.loss[current] - site.loss[grid]) / (site.bits[grid] - site.bits[current]),
                -number,
                grid,
            )
            for number, (site, current) in enumerate(zip(sensitivities, chosen, strict=True))
            for grid in site.bits
            if 0 < site.bits[grid] - site.bits[current] <= free
            and site.loss[grid] < site.loss[current]
        ]
        if not exchanges:
            return chosen
        _, number, grid = max(exchanges, key=lambda exchange: exchange[:2])
        free -= sensitivities[-number].bits[grid] - sensitivities[-number].bits[chosen[-number]]
        chosen[-number] = grid
