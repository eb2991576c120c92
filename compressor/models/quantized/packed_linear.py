"""A layer's weights as a few bits each, with a scale and a zero-point for every group of inputs.

Shapes: O outputs, I inputs, G = I / group size groups of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.models.quantized.description import WeightGrid


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """The integers of a layer."""

    integers_OI: Tensor
    """uint8."""
    scales_OG: Tensor
    """float16 or bfloat16, positive."""
    zeros_OG: Tensor
    """uint8."""
    grid: WeightGrid

    @classmethod
    def joined(cls, parts: Sequence[PackedLinear]) -> PackedLinear:
        """Layers that read one input, one above the other."""
        return cls(
            torch.cat([one.integers_OI for one in parts]),
            torch.cat([one.scales_OG for one in parts]),
            torch.cat([one.zeros_OG for one in parts]),
            parts[0].grid,
        )

    def equals(self, other: PackedLinear) -> bool:
        """Whether both hold the same integers, scales and zero-points."""
        pairs = (
            (self.integers_OI, other.integers_OI),
            (self.scales_OG, other.scales_OG),
            (self.zeros_OG, other.zeros_OG),
        )
        return all(torch.equal(one, two) for one, two in pairs)

    def dequantized(self) -> Tensor:
        """float32 [O, I], each value exactly (q − z) · s."""
        outputs, groups = self.scales_OG.shape
        integers = self.integers_OI.view(outputs, groups, -1).float()
        return (
            (integers - self.zeros_OG.float().unsqueeze(2)) * self.scales_OG.float().unsqueeze(2)
        ).view(outputs, -1)

    def rows(self, start: int, end: int) -> PackedLinear:
        """Some of its outputs."""
        integers, scales, zeros = (
            part[start:end].contiguous()
            for part in (self.integers_OI, self.scales_OG, self.zeros_OG)
        )
        return PackedLinear(integers, scales, zeros, self.grid)

    def divided(self, divisors_O: Tensor) -> PackedLinear:
        """With each row divided by a number, as well as 16-bit scales can."""
        scales = (self.scales_OG.float() / divisors_O.unsqueeze(1)).to(self.scales_OG.dtype)
        return PackedLinear(self.integers_OI, scales, self.zeros_OG, self.grid)
