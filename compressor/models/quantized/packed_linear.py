"""Packed weights of one linear layer: integers, and a scale and zero-point per group of inputs.

Shapes: O outputs, I inputs, G = I / group size groups of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.models.quantized.weight_grid import WeightGrid


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Weights w = (q − z) · s."""

    integers_OI: Tensor
    """q, uint8."""
    scales_OG: Tensor
    """s, float16 or bfloat16, positive."""
    zeros_OG: Tensor
    """z, uint8."""
    grid: WeightGrid

    @classmethod
    def concatenate(cls, parts: Sequence[PackedLinear]) -> PackedLinear:
        """Concatenate the outputs of layers that read the same input."""
        return cls(
            torch.cat([part.integers_OI for part in parts]),
            torch.cat([part.scales_OG for part in parts]),
            torch.cat([part.zeros_OG for part in parts]),
            parts[0].grid,
        )

    def equals(self, other: PackedLinear) -> bool:
        """Return True if integers, scales and zero-points are equal."""
        return (
            torch.equal(self.integers_OI, other.integers_OI)
            and torch.equal(self.scales_OG, other.scales_OG)
            and torch.equal(self.zeros_OG, other.zeros_OG)
        )

    def dequantize(self) -> Tensor:
        """Return the weights as float32 [O, I], each exactly (q − z) · s."""
        outputs, groups = self.scales_OG.shape
        integers = self.integers_OI.view(outputs, groups, -1).float()
        return (
            (integers - self.zeros_OG.float().unsqueeze(2)) * self.scales_OG.float().unsqueeze(2)
        ).view(outputs, -1)

    def rows(self, start: int, end: int) -> PackedLinear:
        """Return the outputs from ``start`` to ``end`` (exclusive)."""
        return self.take_rows(slice(start, end))

    def take_rows(self, rows: Tensor | slice) -> PackedLinear:
        """Return the outputs of the given rows."""
        integers, scales, zeros = (
            tensor[rows].contiguous()
            for tensor in (self.integers_OI, self.scales_OG, self.zeros_OG)
        )
        return PackedLinear(integers, scales, zeros, self.grid)

    def with_scales(self, scales_OG: Tensor) -> PackedLinear:
        """Return the layer with other scales, which are rounded to the dtype of its own."""
        scales_OG = scales_OG.to(self.scales_OG.dtype)
        return PackedLinear(self.integers_OI, scales_OG, self.zeros_OG, self.grid)
