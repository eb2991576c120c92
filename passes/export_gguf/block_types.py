"""Block types of GGUF that hold a grid exactly; planning uses them, so no torch and no numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

from compressor.models.quantized.weight_grid import WeightGrid

BLOCK = 32
"""Inputs of a block."""
_WIDEST = 8
_NEAREST = "`bits: 4` or symmetric `bits: 8`, and a `group_size` that is a multiple of 32"


class BlockType(Enum):
    """A block type, with the bytes of a block."""

    Q4_0 = 18
    Q4_1 = 20
    Q8_0 = 34


_TYPES = {
    (4, True): BlockType.Q4_0,
    (4, False): BlockType.Q4_1,
    (8, True): BlockType.Q8_0,
}
"""Bits and symmetry to the block type."""


def block_type(grid: WeightGrid) -> BlockType:
    """Return the block type of a grid without ``grid_problem``."""
    return _TYPES[grid.bits, grid.symmetric]


def grid_problem(grid: WeightGrid, inputs: int) -> str | None:
    """Return why no block type holds a grid, and the nearest grid that one holds; None if it fits.

    Args:
        grid: of a packed layer.
        inputs: of the layer.
    """
    kind = "symmetric" if grid.symmetric else "with zero-points"
    reasons = []
    nearest = grid
    if (grid.bits, grid.symmetric) not in _TYPES:
        reasons.append(f"{grid.bits} bits {kind}")
        nearest = nearest.model_copy(
            update={"symmetric": True} if grid.bits == _WIDEST else {"bits": 4}
        )
    width = grid.width(inputs)
    if width % BLOCK:
        reasons.append(f"groups of {width}")
        nearest = nearest.model_copy(update={"group_size": BLOCK})
    if inputs % BLOCK:
        return f"{inputs} inputs are no multiple of {BLOCK}; leave the layer in float"
    if not reasons:
        return None
    symmetric = ", symmetric" if nearest.symmetric else ""
    return (
        f"{' in '.join(reasons)}; the nearest that fits is {nearest.bits} bits in groups of "
        f"{nearest.width(inputs)}{symmetric}"
    )


def packing_problem(
    layers: Iterable[tuple[str, WeightGrid, int]], describe: Callable[[str], str] = str
) -> str | None:
    """Return one text that names every packed layer that no block type holds; None if all fit.

    Args:
        layers: name, grid and inputs of each packed layer.
        describe: returns a layer's name as it is listed.
    """
    lines = [
        f"\n        {describe(name)}: {problem}"
        for name, grid, inputs in layers
        if (problem := grid_problem(grid, inputs)) is not None
    ]
    return f"no block type of GGUF holds these layers:{''.join(lines)}" if lines else None


NEAREST_REMEDY = f"set {_NEAREST} in the `awq` step"
