"""Positions of a batch that are not padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.models.capabilities.capability import Capability

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ValidPositions(Capability):
    """The input that masks padding.

    ``qat`` observes ranges and corrects biases at valid positions only: what a layer computes at
    padding is never used, and would widen the ranges.
    """

    label: ClassVar[str] = "valid positions"
    remedy: ClassVar[str] = "name the input that masks padding in the family's `capabilities`"

    mask_input: str | None = None
    """Input [B, T] that is 0 at padding; None if every position of every batch is valid."""

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return the valid positions of a batch, bool [B, T]; None if all are valid."""
        if self.mask_input is None or self.mask_input not in batch:
            return None
        return batch[self.mask_input] != 0
