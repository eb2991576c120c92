"""Small integers packed into a dense stream of bits, lowest bits first.

Shapes: N rows, M values of a row, W int32 words of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 128
"""Rows unpacked to single bits at a time: a bit then takes a byte."""


def pack_bytes(values: Tensor, bits: int) -> Tensor:
    """Pack integers along the last axis into bytes; the last byte is padded with zeros.

    Args:
        values: integers below 2^bits, [..., M].
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 [..., ⌈M · bits / 8⌉].
    """
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -values.shape[-1] % per_byte))
    octets = padded[..., ::per_byte].clone()
    for position in range(1, per_byte):
        octets |= padded[..., position::per_byte] << (position * bits)
    return octets


def unpack_bytes(octets: Tensor, bits: int) -> Tensor:
    """Invert ``pack_bytes``, padding included: uint8 [..., bytes] to [..., bytes · 8 / bits]."""
    return torch.stack(
        [(octets >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], dim=-1
    ).flatten(-2)


def pack_bits(values_NM: Tensor, bits: int) -> Tensor:
    """Pack rows of integers below 2^bits into int32 [N, ⌈M · bits / 32⌉], padded with zeros."""
    return torch.cat([_pack_rows(rows, bits) for rows in torch.split(values_NM, _ROWS)])


def _pack_rows(values_NM: Tensor, bits: int) -> Tensor:
    if 8 % bits == 0:
        octets = pack_bytes(values_NM, bits)
    else:
        shifts = torch.arange(bits, dtype=torch.uint8)
        stream = (values_NM.unsqueeze(2).to(torch.uint8) >> shifts) & 1
        octets = pack_bytes(stream.flatten(1), 1)
    whole = torch.nn.functional.pad(octets, (0, -octets.shape[1] % 4))
    return whole.flatten().view(torch.int32).view(len(whole), -1)


def unpack_bits(words_NW: Tensor, bits: int, count: int) -> Tensor:
    """Invert ``pack_bits`` for rows of ``count`` values: int32 [N, W] to uint8 [N, count]."""
    return torch.cat(
        [_unpack_rows(rows, bits, count) for rows in torch.split(words_NW.contiguous(), _ROWS)]
    )


def _unpack_rows(words_NW: Tensor, bits: int, count: int) -> Tensor:
    octets = words_NW.view(torch.uint8)
    if 8 % bits == 0:
        return unpack_bytes(octets, bits)[:, :count]
    stream = unpack_bytes(octets, 1)[:, : count * bits].reshape(len(words_NW), count, bits)
    return (stream << torch.arange(bits, dtype=torch.uint8)).sum(dim=2, dtype=torch.uint8)
