"""Blocks of GGUF that hold the integers of a packed layer; no rounding.

The layouts are those of ggml: 32 weights of a row, first their scale as float16 (d), for Q4_1 then
their minimum as float16 (m), then the integers. Q4_0 is d·(q − 8), Q4_1 is d·q + m, Q8_0 is d·q
with q signed. In blocks of 4 bits, byte i holds weight i in its low half and weight i + 16 in its
high half.

Shapes: O outputs, I inputs, G groups of a row, B blocks of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.models.quantized.packed_linear import PackedLinear
from passes.export_gguf.block_types import BLOCK, BlockType, block_type

Array = np.ndarray[Any, Any]
_HALF = BLOCK // 2


def unstorable_groups(layer: PackedLinear) -> str | None:
    """Return what keeps the groups of a layer from being stored without rounding; None if nothing.

    Args:
        layer: a layer whose grid has a block type.
    """
    scales_OG, minima_OG = _exact_values(layer)
    for label, exact_OG in (("scales", scales_OG), ("scale · zero-point", minima_OG)):
        with np.errstate(over="ignore"):
            is_lost_OG = exact_OG.astype(np.float16).astype(np.float32) != exact_OG
        if count := int(is_lost_OG.sum()):
            return f"{label} of {count} of {is_lost_OG.size} groups is no float16"
    return None


def blocks_of(layer: PackedLinear) -> Array:
    """Return the blocks of a layer, uint8 [O, B · bytes of a block].

    Args:
        layer: a layer for which ``unstorable_groups`` returns None.
    """
    kind = block_type(layer.grid)
    integers_OI = layer.integers_OI.numpy()
    outputs, inputs = integers_OI.shape
    integers_OBS = integers_OI.reshape(outputs, inputs // BLOCK, BLOCK)
    scales_OG, minima_OG = _exact_values(layer)
    parts = [_bytes_of_groups(scales_OG, inputs)]
    if kind is BlockType.Q4_1:
        parts.append(_bytes_of_groups(minima_OG, inputs))
    if kind is BlockType.Q8_0:
        parts.append((integers_OBS ^ 0x80).astype(np.uint8))  # q − 128 as a signed byte
    else:
        parts.append(integers_OBS[:, :, :_HALF] | integers_OBS[:, :, _HALF:] << 4)
    return np.concatenate(parts, axis=2).reshape(outputs, -1)


def _exact_values(layer: PackedLinear) -> tuple[Array, Array]:
    """Return scales and −scale · zero-point as float32 [O, G], which holds both exactly."""
    scales_OG = layer.scales_OG.float().numpy()
    if layer.grid.symmetric:
        return scales_OG, np.zeros_like(scales_OG)
    return scales_OG, -scales_OG * layer.zeros_OG.float().numpy()


def _bytes_of_groups(values_OG: Array, inputs: int) -> Array:
    """Return a float16 of each group for each of its blocks, uint8 [O, B, 2]."""
    blocks = inputs // BLOCK // values_OG.shape[1]
    values_OB = np.repeat(values_OG.astype("<f2"), blocks, axis=1)
    return values_OB[:, :, None].view(np.uint8)
