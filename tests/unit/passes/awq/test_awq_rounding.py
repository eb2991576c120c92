"""What rounding promises: the error that is told is the error, and more work never makes it larger."""

import pytest
import torch

from compressor.errors import NumericalError
from compressor.models.packed.description import WeightGrid
from compressor.models.transformers_checkpoint.linears import Source
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import Gram, error, rounded
from passes.awq.scaling import search, shared

GRID = WeightGrid(bits=3, group_size=16)


@pytest.fixture
def case():
    torch.manual_seed(0)
    inputs = torch.randn(400, 48) @ torch.randn(48, 48) + 3 * torch.randn(400, 1)
    inputs[:, 7] *= 20
    return inputs, torch.randn(48, 24), inputs.T @ inputs


def test_the_error_of_a_gram_matrix_is_that_of_the_samples(case):
    inputs, weight, gram = case
    off = 0.01 * torch.randn_like(weight)
    assert error(gram, off) == pytest.approx(float((inputs @ off).square().sum()), rel=1e-4)


def test_feedback_is_better_than_the_nearest_value_and_is_what_the_integers_say(case):
    inputs, weight, gram_II = case
    gram = Gram.of(gram_II.clone())
    errors = {}
    for feedback in (False, True):
        packed, values = rounded(weight, weight, gram, GRID, torch.float16, feedback=feedback)
        assert torch.equal(packed.dequantized().T, values)
        assert int(packed.integers_OI.max()) <= 7
        errors[feedback] = float((inputs @ (values - weight)).square().sum())
    assert errors[True] < 0.5 * errors[False]


def test_the_factor_is_that_of_the_inverse(case):
    gram = Gram.of(case[2].clone())
    ordered = gram.gram_II[gram.order_I][:, gram.order_I].double()
    factor = gram.factor_II.double()
    assert torch.allclose(factor.T @ factor @ ordered, torch.eye(48).double(), atol=1e-2)
    assert torch.equal(factor, factor.triu())


def test_not_a_number_is_told(case):
    broken = case[2].clone()
    broken[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not positive definite"):
        Gram.of(broken)


def test_scales_are_only_taken_where_they_help(case):
    inputs, weight, gram = case
    plain = Source("norm", "norm")
    found = search(weight, gram, inputs.abs().mean(0), plain, GRID, torch.float16)
    assert found.ratio > 0
    assert found.gain < 1
    scale = found.scale_I[:, None]
    grids = group_grids(weight * scale, gram.diagonal() / found.scale_I**2, GRID, torch.float16)
    flat = group_grids(weight, gram.diagonal(), GRID, torch.float16)
    better = error(gram, nearest(weight * scale, *grids, 7) / scale - weight)
    assert better < error(gram, nearest(weight, *flat, 7) - weight)
    # A weight that is on its grid already has nothing to win.
    exact = nearest(weight, *flat, 7)
    exact[::16], exact[1::16] = -3.0, 4.0
    exact = exact.clamp(-3, 4).round()
    assert search(exact, gram, inputs.abs().mean(0), plain, GRID, torch.float16).ratio == 0


def test_inputs_of_one_row_share_a_scale():
    source = Source("self_attn.v_proj", "rows", repeats=2, block=3)
    value = torch.arange(12.0)
    assert shared(value, source).tolist() == [1.5, 2.5, 3.5] * 2 + [7.5, 8.5, 9.5] * 2
