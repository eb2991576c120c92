"""Block sizes of packed weights in decoder graphs; planning uses them, so torch is not imported."""

from __future__ import annotations

from compressor.models.quantized.weight_grid import WeightGrid

BLOCK_SIZES = (256, 128, 64, 32, 16)
"""Block sizes of MatMulNBits, ONNX Runtime's product with packed weights."""


def block_size(grid: WeightGrid, inputs: int) -> int:
    """Return the largest block size that divides the groups of a grid; 0 if none does."""
    return _largest_divisor(grid.width(inputs))


def embedding_block_size(hidden: int) -> int:
    """Return the block size of an embedding in 8 bits; 0 if none divides its width."""
    return _largest_divisor(hidden)


def _largest_divisor(width: int) -> int:
    return next((size for size in BLOCK_SIZES if width % size == 0), 0)
