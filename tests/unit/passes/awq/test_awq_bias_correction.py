"""Biases take up the mean error of rounded layers, as far as it is not noise of few samples."""

import pytest
import torch

from compressor.models.checkpoint.loading import load_module
from passes.awq.bias_correction import SampleMeans, reliable_mean
from tests.support.awq import BERT, TEXTS, run_awq_on_family, save_model


def test_an_error_that_all_samples_have_is_taken_and_noise_is_not():
    torch.manual_seed(0)
    errors = torch.stack([1 + 0.1 * torch.randn(8), *(1 + 0.1 * torch.randn(7, 8))])
    assert reliable_mean(errors, [3] * 8) == pytest.approx(torch.ones(8), abs=0.15)
    noise = torch.randn(8, 400)
    assert float(reliable_mean(noise, [3] * 8).square().mean()) < 0.6 * float(
        noise.mean(dim=0).square().mean()
    )
    assert not reliable_mean(torch.ones(1, 4), [24]).any()  # one part: nothing to compare with


def test_means_of_many_batches_are_joined_without_changing_their_mean():
    torch.manual_seed(0)
    inputs, errors = torch.randn(900, 6), torch.randn(900, 3)
    means = SampleMeans()
    for start in range(0, 900, 9):
        means.add(inputs[start : start + 9], errors[start : start + 9])
    assert len(means.counts_S) <= 256
    assert sum(means.counts_S) == 900
    weights = torch.tensor(means.counts_S) / 900
    assert torch.allclose(weights @ torch.stack(means.inputs_SI), inputs.mean(dim=0), atol=1e-6)
    assert torch.allclose(weights @ torch.stack(means.errors_ST), errors.mean(dim=0), atol=1e-6)


def test_biases_change_with_error_compensation_alone(tmp_path):
    parent = save_model(tmp_path / "parent", TEXTS, BERT)
    biases = {}
    for strength in (0.0, 0.5):
        out, _ = run_awq_on_family(
            tmp_path / str(strength), parent, TEXTS, scaling=False, error_compensation=strength
        )
        module = load_module(out)
        biases[strength] = {k: v for k, v in module.state_dict().items() if k.endswith(".bias")}
    float_biases = load_module(parent.model).state_dict()
    linears = [name for name in biases[0.5] if "layer_norm" not in name.lower()]
    assert all(torch.equal(biases[0.0][name], float_biases[name]) for name in linears)
    assert any(not torch.equal(biases[0.5][name], float_biases[name]) for name in linears)
