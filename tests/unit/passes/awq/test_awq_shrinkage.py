"""Few calibration tokens: correlations and compensation are reduced as far as they are noise."""

import pytest
import torch

from passes.awq.shrinkage import Regression, Shrinkage, reliable_fraction, shrink_correlations
from passes.common.weight_rounding.hessian import Hessian

WIDTH = 48
MIXING = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))


def samples(count, seed=1):
    """Return inputs [N, I] whose correlations 8 directions cause."""
    torch.manual_seed(seed)
    return torch.randn(count, 8) @ MIXING + torch.randn(count, WIDTH)


def regression(inputs, errors):
    hessian = Hessian.from_moments(inputs.T @ inputs)
    products = inputs.T @ errors
    return hessian, Regression(products, hessian.solve(products), errors.square().sum(dim=0))


def test_correlations_of_many_tokens_stay_and_those_of_independent_inputs_go():
    inputs = samples(4000)
    moments = inputs.T @ inputs
    before = moments.clone()
    assert shrink_correlations(moments, len(inputs)) == Shrinkage(0.0)
    assert torch.equal(moments, before)
    noise = torch.randn(60, WIDTH)
    moments = noise.T @ noise
    before = moments.diagonal().clone()
    shrinkage = shrink_correlations(moments, len(noise))
    assert shrinkage.share > 0.8
    assert torch.equal(moments.diagonal(), before)


def test_shrunk_moments_are_nearer_to_those_of_many_tokens():
    exact = samples(100_000).T @ samples(100_000) / 100_000
    few = samples(20, seed=2)
    moments = few.T @ few
    plain = (moments / 20 - exact).norm()
    share = shrink_correlations(moments, 20).share
    assert 0.1 < share < 0.9
    assert (moments / 20 - exact).norm() < 0.97 * plain
    scaled = few * torch.logspace(-2, 2, WIDTH)
    assert shrink_correlations(scaled.T @ scaled, 20).share == pytest.approx(share, rel=1e-3)


def test_blocks_of_rows_give_the_same_share(monkeypatch):
    few = samples(60)
    expected = shrink_correlations(few.T @ few, 60).share
    monkeypatch.setattr("passes.awq.shrinkage._ROWS", 20)
    assert shrink_correlations(few.T @ few, 60).share == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "noise"), [(100, 1.0), (100, 5.0), (2000, 5.0)])
def test_the_reliable_fraction_is_the_one_that_helps_other_samples(count, noise):
    solution = 0.3 * torch.randn(WIDTH, 64)
    inputs = samples(count)
    errors = inputs @ solution + noise * torch.randn(count, 64)
    hessian, fit = regression(inputs, errors)
    found = reliable_fraction(fit, hessian, Shrinkage(0.0), count)
    others = samples(20_000, seed=3)
    predicted, exact = others @ fit.solution_IT, others @ solution
    weight = 1 / fit.squares_T
    best = (predicted * exact).sum(0) @ weight / (predicted.square().sum(0) @ weight)
    assert found == pytest.approx(min(float(best), 1.0), abs=0.2)


def test_nothing_is_reliable_in_noise_and_in_fewer_tokens_than_inputs():
    inputs = samples(30)
    hessian, fit = regression(inputs, torch.randn(30, 64))
    assert reliable_fraction(fit, hessian, Shrinkage(0.0), 30) <= 0.1
    nothing = Regression(fit.products_IT * 0, fit.solution_IT * 0, fit.squares_T * 0)
    assert reliable_fraction(nothing, hessian, Shrinkage(0.0), 30) == 0.0


def test_the_reliable_fraction_does_not_depend_on_whether_moments_were_shrunk():
    inputs = samples(100)
    errors = inputs @ torch.randn(WIDTH, 64) + 10 * torch.randn(100, 64)
    moments = inputs.T @ inputs
    products = inputs.T @ errors
    shrinkage = Shrinkage(0.5, 0.55)
    shrunk = moments * shrinkage.factor
    shrunk.diagonal().copy_(moments.diagonal())
    hessian = Hessian.from_moments(shrunk)
    fit = Regression(products, hessian.solve(products), errors.square().sum(dim=0))
    predicted = inputs @ fit.solution_IT
    leverage = float((inputs @ hessian.solve(inputs.T)).diagonal().mean())
    held_out = (predicted - leverage * errors) / (1 - leverage)
    weight = 1 / fit.squares_T
    expected = ((errors * held_out).sum(0) @ weight) / (held_out.square().sum(0) @ weight)
    found = reliable_fraction(fit, hessian, shrinkage, 100)
    assert found == pytest.approx(float(expected), abs=0.101)
