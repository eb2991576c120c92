"""Bits by layer: how much each decoder layer's result changes when a part of it is rounded, and who gets how many bits.

Sites are the linear layers of a decoder layer that read one input; they are packed together, as consumers fuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.capabilities.linear_groups import Site
from compressor.models.families.transformers.streaming import (
    Arguments,
    StreamedCheckpoint,
    result_of,
)
from compressor.models.quantized.description import WeightGrid
from passes.awq.grids import group_grids, nearest
from passes.awq.samples import flat
from passes.awq.site import linear_of


@dataclass(frozen=True, slots=True)
class Rated:
    """A site of one decoder layer."""

    layer: int
    site: str
    bits: Mapping[WeightGrid, float]
    """What its weights take on each grid, scales and zero-points counted."""
    loss: Mapping[WeightGrid, float]
    """What rounding it to the nearest changes of the layer's result: squared, in the square of the result."""


@torch.inference_mode()
def rate(
    checkpoint: StreamedCheckpoint,
    sites: Sequence[Site],
    grids: Sequence[WeightGrid],
    hidden: Tensor,
    arguments: Sequence[Arguments],
    meant: Tensor | None,
    progress: Callable[[int, int], None],
) -> list[Rated]:
    """Run the float layers one after another, and each again with one of its sites rounded.

    Args:
        checkpoint: the parent.
        sites: of a decoder layer.
        grids: that a site may get.
        hidden: what enters the first layer, [B, T, hidden].
        arguments: what each layer is called with beside it.
        meant: the positions that count, bool [B·T]; None where all do.
        progress: layers done, and all.
    """
    found = []
    for number, given in enumerate(arguments):
        name = f"{checkpoint.layers_name}.{number}"
        layer = checkpoint.load(name)
        result = result_of(layer, hidden, given)
        counted = counting(result, meant)
        size = float(counted.square().mean())
        for site in sites:
            losses, bits = {}, {}
            for grid in grids:
                bits[grid] = _round(layer, site, grid)
                rounded = counting(result_of(layer, hidden, given), meant)
                losses[grid] = float((rounded - counted).square().mean()) / size
                _restore(layer, site)
            found.append(Rated(number, site.name, bits, losses))
        hidden = result
        checkpoint.unload(name)
        progress(number + 1, len(arguments))
    return found


def counting(result: Tensor, meant: Tensor | None) -> Tensor:
    """The positions that count of a result [B, T, hidden], [P, hidden]."""
    return flat(result) if meant is None else flat(result)[meant]


def allocate(rated: Sequence[Rated], bits: float) -> list[WeightGrid]:
    """The grid of each site: from the cheapest on, again and again the exchange that wins most loss for its bits.

    Args:
        rated: all sites.
        bits: that all of them may take together.

    Returns:
        As many as ``rated``; together they take at most ``bits``, unless the cheapest of all take more already.
    """
    chosen = [min(one.bits, key=lambda grid: one.bits[grid]) for one in rated]
    left = bits - sum(one.bits[grid] for one, grid in zip(rated, chosen, strict=True))
    while True:
        offers = [
            ((one.loss[now] - one.loss[grid]) / (one.bits[grid] - one.bits[now]), -number, grid)
            for number, (one, now) in enumerate(zip(rated, chosen, strict=True))
            for grid in one.bits
            if 0 < one.bits[grid] - one.bits[now] <= left and one.loss[grid] < one.loss[now]
        ]
        if not offers:
            return chosen
        _, number, grid = max(offers, key=lambda offer: offer[:2])
        left -= rated[-number].bits[grid] - rated[-number].bits[chosen[-number]]
        chosen[-number] = grid


def _round(layer: nn.Module, site: Site, grid: WeightGrid) -> float:
    """A site's weights as what they are next to on the grid; what they take there in bits."""
    bits = 0.0
    for name in site.linears:
        linear: Any = linear_of(layer, name)
        linear.whole = linear.weight.data
        weight_IO = linear.whole.T.contiguous()
        steps = group_grids(
            weight_IO, torch.ones(len(weight_IO)), grid, torch.float16, candidates=1
        )
        linear.weight.data = nearest(weight_IO, *steps, grid.highest).T.contiguous()
        bits += weight_IO.numel() * grid.effective_bits(len(weight_IO))
    return bits


def _restore(layer: nn.Module, site: Site) -> None:
    for name in site.linears:
        linear: Any = linear_of(layer, name)
        linear.weight.data = linear.whole
        del linear.whole
