"""Rounding of weights: reported errors are true, and refinement never increases them."""

import pytest
import torch

from compressor.errors import NumericalError
from compressor.models.capabilities.linear_groups import Source
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.input_statistics import InputStatistics
from passes.awq.scaling import average_shared, relative_size, search_scales
from passes.common.weight_rounding.grids import ScaleFormat, round_to_nearest, search_grids
from passes.common.weight_rounding.hessian import Hessian, add_moments, mirror_upper, squared_error
from passes.common.weight_rounding.rounding import coordinate_descent, gptq_round, quantize_weights

FLOAT16 = ScaleFormat(torch.float16)
GRID = WeightGrid(bits=3, group_size=16)


@pytest.fixture
def case():
    """Return inputs [N, I], weights [I, O] and second moments [I, I]."""
    torch.manual_seed(0)
    inputs = torch.randn(400, 48) @ torch.randn(48, 48) + 3 * torch.randn(400, 1)
    inputs[:, 7] *= 20
    return inputs, torch.randn(48, 24), inputs.T @ inputs


def search(weight, moments):
    return search_grids(weight, moments.diagonal(), GRID, FLOAT16)


def test_the_error_of_the_second_moments_is_that_of_the_samples(case):
    inputs, weight, moments = case
    change = 0.01 * torch.randn_like(weight)
    expected = (inputs @ change).square().sum(dim=0)
    assert torch.allclose(squared_error(moments, change), expected, rtol=1e-4)


def test_gptq_is_better_than_nearest_and_its_error_is_that_of_the_integers(case):
    inputs, weight, moments = case
    hessian = Hessian.from_moments(moments.clone())
    errors = {}
    for gptq in (False, True):
        packed = quantize_weights(weight, weight, hessian, GRID, FLOAT16, gptq=gptq)
        assert int(packed.integers_OI.max()) <= 7
        errors[gptq] = float((inputs @ (packed.dequantize().T - weight)).square().sum())
    assert errors[True] < 0.5 * errors[False]


def test_the_factor_is_that_of_the_inverse_hessian(monkeypatch, case):
    hessian = Hessian.from_moments(case[2].clone())
    ordered = hessian.matrix_II[hessian.order_I][:, hessian.order_I].double()
    factor = hessian.inverse_factor_II.double()
    assert torch.allclose(factor.T @ factor @ ordered, torch.eye(48).double(), atol=1e-2)
    assert torch.equal(factor, factor.tril())
    assert (ordered.diagonal().diff() >= 0).all()
    monkeypatch.setattr("passes.common.weight_rounding.hessian._ROWS", 20)
    right = torch.randn(48, 3)
    assert torch.allclose(hessian.matrix_II @ hessian.solve(right), right, atol=1e-2)


def test_moments_summed_by_blocks_are_complete_once_mirrored(monkeypatch, case):
    inputs, _, expected = case
    monkeypatch.setattr("passes.common.weight_rounding.hessian._ROWS", 20)
    moments = torch.zeros(48, 48)
    for batch in inputs.split(100):
        add_moments(moments, batch)
    assert torch.allclose(mirror_upper(moments), expected, rtol=1e-4, atol=1e-2)
    assert torch.equal(moments, moments.T)


def test_gptq_returns_the_gradient_of_the_remaining_error(case):
    _, weight, moments = case
    hessian = Hessian.from_moments(moments)
    values, gradient = gptq_round(weight, hessian, search(weight, moments))
    expected = hessian.matrix_II @ (weight - values)
    assert torch.allclose(gradient, expected, atol=1e-3 * float(expected.abs().max()))


def test_coordinate_descent_never_increases_the_error(case):
    _, weight, moments = case
    moments.diagonal().add_(0.1 * moments.diagonal().mean())
    grids = search(weight, moments)
    values = round_to_nearest(weight, grids)
    before = squared_error(moments, values - weight)
    coordinate_descent(values, moments @ (weight - values), moments, grids)
    after = squared_error(moments, values - weight)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.8 * before.sum()
    steps = values.view(3, 16, -1) / grids.scale_GO.unsqueeze(1)
    assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_moments_that_are_not_finite_are_refused(case):
    broken = case[2].clone()
    broken[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not positive definite"):
        Hessian.from_moments(broken)


def test_scales_are_only_used_where_they_help(case):
    inputs, weight, moments = case
    statistics, norm = InputStatistics(moments, inputs.abs().mean(0)), Source("norm", "norm")
    scaling = search_scales(weight, relative_size(weight, 16), statistics, norm, GRID, FLOAT16)
    assert scaling.exponent > 0
    assert scaling.relative_error < 1
    scale = scaling.scale_I[:, None]
    scaled_grids = search_grids(
        weight * scale, moments.diagonal() / scaling.scale_I**2, GRID, FLOAT16
    )
    plain_grids = search(weight, moments)
    scaled = round_to_nearest(weight * scale, scaled_grids) / scale
    plain = round_to_nearest(weight, plain_grids)
    scaled_error = squared_error(moments, scaled - weight).sum()
    assert scaled_error < squared_error(moments, plain - weight).sum()
    # Weights that lie on their grids already have nothing to gain.
    exact = plain.clone()
    exact[::16], exact[1::16] = -3.0, 4.0
    exact = exact.clamp(-3, 4).round()
    scaling = search_scales(exact, relative_size(exact, 16), statistics, norm, GRID, FLOAT16)
    assert scaling.exponent == 0


def test_inputs_that_come_from_one_row_share_a_scale():
    source = Source("self_attn.v_proj", "rows", repeats=2, block=3)
    shared = average_shared(torch.arange(12.0), source)
    assert shared.tolist() == [1.5, 2.5, 3.5] * 2 + [7.5, 8.5, 9.5] * 2


def test_gguf_scales_keep_the_product_with_the_zero_point_in_float16(case):
    inputs, weight, moments = case
    grid = WeightGrid(bits=4, group_size=16)
    hessian = Hessian.from_moments(moments.clone())
    errors = {}
    for gguf in (False, True):
        scales = ScaleFormat(torch.float16, gguf)
        packed = quantize_weights(weight, weight, hessian, grid, scales, gptq=True)
        product = packed.scales_OG.float() * packed.zeros_OG.float()
        assert torch.equal(product.half().float(), product) == gguf
        errors[gguf] = float((inputs @ (packed.dequantize().T - weight)).square().sum())
    assert errors[True] < 1.1 * errors[False]


def test_symmetric_gguf_scales_turn_the_longer_side_to_the_additional_integer(case):
    _, weight, moments = case
    grid = WeightGrid(bits=4, group_size=16, symmetric=True)
    errors = {}
    for gguf in (False, True):
        grids = search_grids(weight, torch.ones(48), grid, ScaleFormat(torch.float16, gguf))
        assert bool((grids.scale_GO < 0).any()) == gguf
        errors[gguf] = float((round_to_nearest(weight, grids) - weight).square().sum())
    assert errors[True] < 0.97 * errors[False]
    hessian = Hessian.from_moments(moments.clone())
    scales = ScaleFormat(torch.float16, gguf=True)
    packed = quantize_weights(weight, weight, hessian, grid, scales, gptq=True)
    assert int(packed.integers_OI.min()) == 0
