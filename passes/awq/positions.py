"""Which positions decide: those on which an answer depends. What is padding is found so, and no model has to tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.linear_groups import Block, Site

Deciding = Mapping[str, Sequence[Tensor]]
"""Linear layer to, call by call, bool [N]: the positions that an answer depends on."""


def deciding(
    module: nn.Module, linears: Iterable[str], outputs: Sequence[str], inputs: Mapping[str, Tensor]
) -> Deciding:
    """Where the derivative of the answers by what a linear layer says is not 0.

    Masks make it 0, exactly: the exponential of a hidden score is. All answers are looked at together, in a random
    direction, as some directions are blind: a vector of length 1 keeps its length, whatever it depends on.

    Args:
        module: float, in eval mode.
        linears: names; the weights of these layers have derivatives, and no others need any.
        outputs: the answers.
        inputs: a batch.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in linears}
    generator = torch.Generator().manual_seed(0)

    def after(name: str, _: object, result: Tensor) -> None:
        found[name].append(result)

    with torch.enable_grad(), forward_hooks(module, found, after=after):
        answers = module(**inputs)
        total = sum(
            (answers[one].float() * torch.randn(answers[one].shape, generator=generator)).sum()
            for one in outputs
        )
    results = [result for calls in found.values() for result in calls]
    slopes = iter(torch.autograd.grad(total, results, allow_unused=True))
    return {
        name: [_rows(result, next(slopes)) for result in calls] for name, calls in found.items()
    }


def _rows(result: Tensor, slope: Tensor | None) -> Tensor:
    """Rows of a result [..., O] with a derivative, bool [N]."""
    if slope is None:
        return torch.zeros(result.shape[:-1].numel(), dtype=torch.bool)
    return slope.reshape(-1, slope.shape[-1]).ne(0).any(dim=-1)


class Depending:
    """The positions of a block's sites, from what ``deciding`` found of each batch."""

    def __init__(self, block: Block, batches: Sequence[Deciding]) -> None:
        self.block, self.batches = block, batches

    def calls(self, site: Site, batch: int) -> int:
        """As often as the first of its linear layers was called."""
        return len(self._of(site, batch)[0])

    def meant(self, site: Site, batch: int) -> Tensor | None:
        """Where any of its linear layers says something that an answer depends on."""
        counted = torch.stack([torch.cat(list(calls)) for calls in self._of(site, batch)]).any(
            dim=0
        )
        return None if bool(counted.all()) else counted

    def _of(self, site: Site, batch: int) -> list[Sequence[Tensor]]:
        return [self.batches[batch][self.block.full(name)] for name in site.linears]
