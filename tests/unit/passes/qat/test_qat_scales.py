"""Grids and scales of activations, from what was seen of them."""

import pytest

from calibration.table import Range
from compressor.models.quantized.quantization import Grid
from passes.qat.scales import activation_grid, activation_scale


def seen(minimum, maximum, bound=None):
    bound = max(-minimum, maximum) if bound is None else bound
    return Range(values=9, minimum=minimum, maximum=maximum, bound=bound)


@pytest.mark.parametrize(
    ("range_", "below", "ends"),
    [
        (seen(-0.17, 24.57), 2, (-0.17, 24.57)),
        (seen(-4.0, 6.0), 102, (-4.0, 6.0)),
        (seen(0.5, 5.1), 0, (0.0, 5.1)),  # 0 is on every grid
        (seen(-5.1, -0.5), 255, (-5.1, 0.0)),
        (seen(-1.0, 30.0, bound=3.0), 64, (-1.0, 3.0)),  # the observer clips
    ],
)
def test_a_grid_holds_what_was_seen_and_no_more(range_, below, ends):
    grid = activation_grid(range_, 8, nonnegative=False, symmetric=False)
    scale = float(activation_scale(range_, grid))
    assert grid == Grid(bits=8, below=below)
    assert grid.highest - grid.lowest == 255
    found = grid.lowest * scale, grid.highest * scale
    assert found[0] <= ends[0] + 1e-6
    assert found[1] >= ends[1] - 1e-6
    assert found[1] - found[0] < 1.3 * (ends[1] - ends[0])


def test_symmetric_and_nonnegative_grids_are_left_as_they_are():
    assert activation_grid(seen(-1, 9), 8, nonnegative=False, symmetric=True) == Grid(bits=8)
    assert activation_grid(seen(0, 9), 8, nonnegative=True, symmetric=False) == Grid(
        bits=8, nonnegative=True
    )


def test_where_there_is_nothing_the_scale_is_one():
    nothing = seen(0.0, 0.0)
    grid = activation_grid(nothing, 8, nonnegative=False, symmetric=False)
    assert (grid, float(activation_scale(nothing, grid))) == (Grid(bits=8), 1.0)
