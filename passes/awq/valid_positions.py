"""Positions of calibration batches that count: those that are not padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.linear_groups import Block, Site

CallMasks = Mapping[str, Sequence[Tensor]]
"""Linear layer to a mask for each of its calls, bool [N]: the positions that affect an output."""


class SitePositions(Protocol):
    """Calls and valid positions of the sites of a block, batch by batch."""

    def calls(self, site: Site, batch: int) -> int:
        """Return how often the site's linear layers are called."""

    def valid(self, site: Site, batch: int) -> Tensor | None:
        """Return the valid positions of all calls together, bool [N]; None if all are valid."""


class MaskedPositions:
    """Positions of a decoder layer that runs once per batch: those of the attention mask."""

    def __init__(self, masks: Sequence[Tensor | None]) -> None:
        """Take the mask of each batch, bool [B·T]; None where all positions are valid."""
        self._masks = masks

    def calls(self, site: Site, batch: int) -> int:  # noqa: ARG002
        """Return 1."""
        return 1

    def valid(self, site: Site, batch: int) -> Tensor | None:  # noqa: ARG002
        """Return the batch's mask."""
        return self._masks[batch]


class TracedPositions:
    """Positions of a block's sites that affect an output, as ``trace_positions`` finds them."""

    def __init__(self, block: Block, batches: Sequence[CallMasks]) -> None:
        self._block, self._batches = block, batches

    def calls(self, site: Site, batch: int) -> int:
        """Return how often the first of the site's linear layers is called."""
        return len(self._masks(site, batch)[0])

    def valid(self, site: Site, batch: int) -> Tensor | None:
        """Return the positions at which any of the site's linear layers affects an output."""
        masks = [torch.cat(list(calls)) for calls in self._masks(site, batch)]
        valid_N = torch.stack(masks).any(dim=0)
        return None if bool(valid_N.all()) else valid_N

    def _masks(self, site: Site, batch: int) -> list[Sequence[Tensor]]:
        return [self._batches[batch][self._block.full(name)] for name in site.linears]


def trace_positions(
    module: nn.Module, linears: Iterable[str], outputs: Sequence[str], inputs: Mapping[str, Tensor]
) -> CallMasks:
    """Return where the gradient of the outputs with respect to a linear layer's result is not 0.

    Attention masks make the gradient exactly 0 at padding, because the exponential of a masked
    score is 0; so no mask has to be named. The gradient is taken of a random projection of all
    outputs, since it vanishes in some directions: a normalized vector has constant length. Parts
    that a class runs without gradients, such as the frozen CLIP of CLIPSeg, count everywhere.

    Args:
        module: float module in eval mode, of which the weights of ``linears`` require gradients.
        linears: names of linear layers.
        outputs: names of the outputs.
        inputs: a batch.
    """
    results: dict[str, list[Tensor]] = {name: [] for name in linears}
    generator = torch.Generator().manual_seed(0)

    def record(name: str, _: object, result: Tensor) -> None:
        results[name].append(result)

    with torch.enable_grad(), forward_hooks(module, results, after=record):
        values = module(**inputs)
        projection = sum(
            (values[name].float() * torch.randn(values[name].shape, generator=generator)).sum()
            for name in outputs
        )
    calls = [result for layer_results in results.values() for result in layer_results]
    traced = [result for result in calls if result.requires_grad]
    gradients = iter(torch.autograd.grad(projection, traced, allow_unused=True) if traced else ())
    return {
        name: [
            _nonzero_rows(result, next(gradients)) if result.requires_grad else _all_rows(result)
            for result in layer_results
        ]
        for name, layer_results in results.items()
    }


def _all_rows(result: Tensor) -> Tensor:
    return torch.ones(result.shape[:-1].numel(), dtype=torch.bool)


def _nonzero_rows(result: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the positions of a result [..., O] with a gradient, bool [N]."""
    if gradient is None:
        return torch.zeros(result.shape[:-1].numel(), dtype=torch.bool)
    return gradient.reshape(-1, gradient.shape[-1]).ne(0).any(dim=-1)
