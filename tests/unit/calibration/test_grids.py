"""Grids and scales of activations, from their ranges."""

import pytest

from calibration.grids import activation_grid, activation_scale
from calibration.table import Range
from compressor.models.quantized.quantization import Grid


def observed(minimum, maximum, bound=None):
    bound = max(-minimum, maximum) if bound is None else bound
    return Range(values=9, minimum=minimum, maximum=maximum, bound=bound)


@pytest.mark.parametrize(
    ("range_", "below", "ends"),
    [
        (observed(-0.17, 24.57), 2, (-0.17, 24.57)),
        (observed(-4.0, 6.0), 102, (-4.0, 6.0)),
        (observed(0.5, 5.1), 0, (0.0, 5.1)),  # 0 is on every grid
        (observed(-5.1, -0.5), 255, (-5.1, 0.0)),
        (observed(-1.0, 30.0, bound=3.0), 64, (-1.0, 3.0)),  # the observer clips
    ],
)
def test_a_grid_covers_the_range_and_little_more(range_, below, ends):
    grid = activation_grid(range_, 8, nonnegative=False, symmetric=False)
    scale = float(activation_scale(range_, grid))
    assert grid == Grid(bits=8, below=below)
    assert grid.highest - grid.lowest == 255
    low, high = grid.lowest * scale, grid.highest * scale
    assert low <= ends[0] + 1e-6
    assert high >= ends[1] - 1e-6
    assert high - low < 1.3 * (ends[1] - ends[0])


def test_symmetric_and_nonnegative_grids_do_not_depend_on_the_range():
    symmetric = activation_grid(observed(-1, 9), 8, nonnegative=False, symmetric=True)
    assert symmetric == Grid(bits=8)
    nonnegative = activation_grid(observed(0, 9), 8, nonnegative=True, symmetric=False)
    assert nonnegative == Grid(bits=8, nonnegative=True)


def test_the_scale_of_a_range_of_zeros_is_one():
    zeros = observed(0.0, 0.0)
    grid = activation_grid(zeros, 8, nonnegative=False, symmetric=False)
    assert (grid, float(activation_scale(zeros, grid))) == (Grid(bits=8), 1.0)
