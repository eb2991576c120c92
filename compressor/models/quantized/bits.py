"""Small integers as a dense stream of bits, the lowest first."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 128
"""Rows that are spread out at a time: those of 3 bits take a byte for each bit."""


def packed_bytes(values: Tensor, bits: int) -> Tensor:
    """Integers below 2^bits, of 1, 2, 4 or 8, along the last axis: uint8 [..., ⌈M · bits / 8⌉], filled up with zeros."""
    each = 8 // bits
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -values.shape[-1] % each))
    octets = padded[..., ::each].clone()
    for place in range(1, each):
        octets |= padded[..., place::each] << (place * bits)
    return octets


def unpacked_bytes(octets: Tensor, bits: int) -> Tensor:
    """What ``packed_bytes`` packed, with what filled the last byte: uint8 [..., 8 / bits · bytes]."""
    return torch.stack(
        [(octets >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], dim=-1
    ).flatten(-2)


def packed_bits(values_NM: Tensor, bits: int) -> Tensor:
    """Rows of integers below 2^bits in int32: [N, ⌈M · bits / 32⌉], filled up with zeros."""
    return torch.cat([_packed(some, bits) for some in torch.split(values_NM, _ROWS)])


def _packed(values_NM: Tensor, bits: int) -> Tensor:
    if 8 % bits == 0:
        octets = packed_bytes(values_NM, bits)
    else:
        stream = (
            values_NM.unsqueeze(2).to(torch.uint8) >> torch.arange(bits, dtype=torch.uint8)
        ) & 1
        octets = packed_bytes(stream.flatten(1), 1)
    whole = torch.nn.functional.pad(octets, (0, -octets.shape[1] % 4))
    return whole.flatten().view(torch.int32).view(len(whole), -1)


def unpacked_bits(words_NW: Tensor, bits: int, count: int) -> Tensor:
    """What ``packed_bits`` packed: uint8 [N, count]."""
    return torch.cat(
        [_unpacked(some, bits, count) for some in torch.split(words_NW.contiguous(), _ROWS)]
    )


def _unpacked(words_NW: Tensor, bits: int, count: int) -> Tensor:
    octets = words_NW.view(torch.uint8)
    if 8 % bits == 0:
        return unpacked_bytes(octets, bits)[:, :count]
    stream = unpacked_bytes(octets, 1)[:, : count * bits].reshape(len(words_NW), count, bits)
    return (stream << torch.arange(bits, dtype=torch.uint8)).sum(dim=2, dtype=torch.uint8)
