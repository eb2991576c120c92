"""Losses over a family's heads: tensors in, tensors out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def hard_cross_entropy(heads: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean cross-entropy of each head, [..., classes], whose label, [...], the batch has; a scalar each."""
    return {
        name: cross_entropy(logits.flatten(0, -2), batch[name].flatten())
        for name, logits in heads.items()
        if name in batch
    }
