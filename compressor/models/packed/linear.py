"""A layer's weights as a few bits each, with a scale and a zero-point for every group of inputs.

Shapes: O outputs, I inputs, G = I / group size groups of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.models.packed.description import WeightGrid

_ROWS = 128
"""Rows whose bits are spread out at a time: a byte each."""


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
        return ((integers - self.zeros_OG.float().unsqueeze(2)) * self.scales_OG.float().unsqueeze(2)).view(outputs, -1)

    def rows(self, start: int, end: int) -> PackedLinear:
        """Some of its outputs."""
        integers, scales, zeros = (
            part[start:end].contiguous() for part in (self.integers_OI, self.scales_OG, self.zeros_OG)
        )
        return PackedLinear(integers, scales, zeros, self.grid)

    def divided(self, divisors_O: Tensor) -> PackedLinear:
        """With each row divided by a number, as well as 16-bit scales can."""
        scales = (self.scales_OG.float() / divisors_O.unsqueeze(1)).to(self.scales_OG.dtype)
        return PackedLinear(self.integers_OI, scales, self.zeros_OG, self.grid)


def packed_bits(values_NM: Tensor, bits: int) -> Tensor:
    """Rows of integers below 2^bits as a dense stream of bits, the lowest first, in int32: [N, ⌈M · bits / 32⌉]."""
    return torch.cat([_packed(some, bits) for some in torch.split(values_NM, _ROWS)])


def _packed(values_NM: Tensor, bits: int) -> Tensor:
    count = values_NM.shape[1]
    words = -(-count * bits // 32)
    stream = (values_NM.unsqueeze(2).to(torch.uint8) >> torch.arange(bits, dtype=torch.uint8)) & 1
    padded = torch.nn.functional.pad(stream.flatten(1), (0, 32 * words - count * bits)).view(
        len(values_NM), words, 4, 8
    )
    weights = (1 << torch.arange(8)).to(torch.uint8)
    octets = (padded * weights).sum(dim=3, dtype=torch.uint8)
    return octets.contiguous().view(torch.int32).squeeze(2)


def unpacked_bits(words_NW: Tensor, bits: int, count: int) -> Tensor:
    """What ``packed_bits`` packed: uint8 [N, count]."""
    return torch.cat([_unpacked(some, bits, count) for some in torch.split(words_NW.contiguous(), _ROWS)])


def _unpacked(words_NW: Tensor, bits: int, count: int) -> Tensor:
    octets = words_NW.view(torch.uint8)
    stream = (octets.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)) & 1
    taken = stream.flatten(1)[:, : count * bits].reshape(len(words_NW), count, bits)
    return (taken << torch.arange(bits, dtype=torch.uint8)).sum(dim=2, dtype=torch.uint8)
