"""What rounding promises: the error that is told is the error, and more work never makes it larger."""

import pytest
import torch

from compressor.errors import NumericalError
from compressor.models.capabilities.linear_groups import Source
from compressor.models.quantized.description import WeightGrid
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import (
    Gram,
    add_moments,
    choose_again,
    error,
    mirrored,
    rounded,
    with_feedback,
)
from passes.awq.scaling import relative_size, search, shared

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
    assert torch.allclose(error(gram, off), (inputs @ off).square().sum(dim=0), rtol=1e-4)


def test_feedback_is_better_than_the_nearest_value_and_is_what_the_integers_say(case):
    inputs, weight, gram_II = case
    gram = Gram.of(gram_II.clone())
    errors = {}
    for feedback in (False, True):
        packed = rounded(weight, weight, gram, GRID, torch.float16, feedback=feedback)
        assert int(packed.integers_OI.max()) <= 7
        errors[feedback] = float((inputs @ (packed.dequantized().T - weight)).square().sum())
    assert errors[True] < 0.5 * errors[False]


def test_the_factor_is_that_of_the_inverse(monkeypatch, case):
    gram = Gram.of(case[2].clone())
    ordered = gram.gram_II[gram.order_I][:, gram.order_I].double()
    factor = gram.factor_II.double()
    assert torch.allclose(factor.T @ factor @ ordered, torch.eye(48).double(), atol=1e-2)
    assert torch.equal(factor, factor.tril())
    assert (ordered.diagonal().diff() >= 0).all()
    monkeypatch.setattr("passes.awq.rounding._ROWS", 20)
    right = torch.randn(48, 3)
    assert torch.allclose(gram.gram_II @ gram.solved(right), right, atol=1e-2)


def test_moments_by_blocks_are_whole_when_they_are_mirrored(monkeypatch, case):
    monkeypatch.setattr("passes.awq.rounding._ROWS", 20)
    found = torch.zeros(48, 48)
    for some in case[0].split(100):
        add_moments(found, some)
    assert torch.allclose(mirrored(found), case[2], rtol=1e-4, atol=1e-2)
    assert torch.equal(found, found.T)


def test_feedback_tells_the_slope_of_what_it_left(case):
    _, weight, gram_II = case
    gram = Gram.of(gram_II)
    scales, zeros = group_grids(weight, gram_II.diagonal(), GRID, torch.float16)
    values, slope = with_feedback(weight, gram, scales, zeros, 7)
    wanted = gram.gram_II @ (weight - values)
    assert torch.allclose(slope, wanted, atol=1e-3 * float(wanted.abs().max()))


def test_choosing_again_never_makes_the_error_larger(case):
    _, weight, gram_II = case
    gram_II.diagonal().add_(0.1 * gram_II.diagonal().mean())
    scales, zeros = group_grids(weight, gram_II.diagonal(), GRID, torch.float16)
    values = nearest(weight, scales, zeros, 7)
    before = error(gram_II, values - weight)
    choose_again(values, gram_II @ (weight - values), gram_II, scales, zeros, 7, torch.float16)
    after = error(gram_II, values - weight)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.8 * before.sum()
    steps = values.view(3, 16, -1) / scales.unsqueeze(1)
    assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_not_a_number_is_told(case):
    broken = case[2].clone()
    broken[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not positive definite"):
        Gram.of(broken)


def test_scales_are_only_taken_where_they_help(case):
    inputs, weight, gram = case
    plain = Source("norm", "norm")
    found = search(
        weight, relative_size(weight, 16), gram, inputs.abs().mean(0), plain, GRID, torch.float16
    )
    assert found.ratio > 0
    assert found.gain < 1
    scale = found.scale_I[:, None]
    grids = group_grids(weight * scale, gram.diagonal() / found.scale_I**2, GRID, torch.float16)
    flat = group_grids(weight, gram.diagonal(), GRID, torch.float16)
    better = error(gram, nearest(weight * scale, *grids, 7) / scale - weight)
    assert better.sum() < error(gram, nearest(weight, *flat, 7) - weight).sum()
    # A weight that is on its grid already has nothing to win.
    exact = nearest(weight, *flat, 7)
    exact[::16], exact[1::16] = -3.0, 4.0
    exact = exact.clamp(-3, 4).round()
    assert (
        search(
            exact, relative_size(exact, 16), gram, inputs.abs().mean(0), plain, GRID, torch.float16
        ).ratio
        == 0
    )


def test_inputs_of_one_row_share_a_scale():
    source = Source("self_attn.v_proj", "rows", repeats=2, block=3)
    value = torch.arange(12.0)
    assert shared(value, source).tolist() == [1.5, 2.5, 3.5] * 2 + [7.5, 8.5, 9.5] * 2
