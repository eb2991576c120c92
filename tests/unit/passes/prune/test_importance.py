"""Scores of units and layers: known values, and 0 for what has no effect."""

import numpy as np
import pytest
import torch

from compressor.models.capabilities.cuttable_axes import Axis, Cut, CuttableAxes
from passes.prune.importance import (
    score_by_activation,
    score_by_entropy,
    score_by_gradient,
    score_by_magnitude,
    score_by_taylor,
)
from passes.prune.layer_importance import (
    score_layers_by_cosine,
    score_layers_by_loss,
    score_layers_by_taylor,
)
from tests.support.pruning import silence
from tests.support.tiny_models import CUTTABLE, OTHER, PHONE, build_model, random_inputs


def labelled_loss(family, config, model):
    names = [spec.name for spec in family.signature(config).inputs]

    def loss(batch):
        logits = model(**{name: batch[name] for name in names})["logits"]
        return torch.nn.functional.cross_entropy(logits, batch["label"])

    return loss


def labelled_batch(family, config):
    return random_inputs(family, config, 6) | {"label": torch.arange(6) % 10}


def inner_axis(*cuts):
    return Axis("inner", "ffn", 3, cuts, ((("ffn",), 1),))


@pytest.mark.parametrize("score", [score_by_activation, score_by_taylor])
@pytest.mark.parametrize(("family", "config"), CUTTABLE[:4])
def test_a_unit_without_effect_has_no_importance(family, config, score):
    model = build_model(family, config)
    axes = [axis for axis in family.capability(CuttableAxes, config).axes if not axis.stack]
    for axis in axes:
        silence(model, axis, torch.tensor([axis.units - 1]))
    batch = labelled_batch(family, config)
    scores = score(model, axes, [batch, batch], labelled_loss(family, config, model))
    for axis in axes:
        assert scores[axis.name][-1] == 0
        assert (scores[axis.name] >= 0).all()
        if axis.units > 1:
            assert scores[axis.name].max() > 0, axis.name


@pytest.mark.parametrize(
    "score", [score_layers_by_cosine, score_layers_by_loss, score_layers_by_taylor]
)
def test_a_layer_that_returns_its_input_has_no_importance(score):
    model = build_model(PHONE, OTHER)
    axes = [
        axis
        for axis in PHONE.capability(CuttableAxes, OTHER).axes
        if axis.stack in {"vision.layers", "speech.layers", "text_encoder.layers"}
    ]
    assert [axis.units for axis in axes] == [2, 2, 2]
    for axis in axes:
        silence(model, axis, torch.tensor([1]))
    batch = labelled_batch(PHONE, OTHER)
    batches = (lambda _: [batch]) if score is score_layers_by_loss else [batch]
    all_scores = score(model, axes, batches, labelled_loss(PHONE, OTHER, model))
    for name, scores in all_scores.items():
        assert scores[1] == pytest.approx(0, abs=1e-12), name
        assert score is score_layers_by_loss or scores[0] > 0, name


def test_a_constant_channel_has_no_entropy():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 0.0, 1.0])))
    axis = inner_axis(Cut("0.weight", 0), Cut("1.weight", 1))
    torch.manual_seed(0)
    values = torch.rand(4000, 3)
    values[:, 2] = (values[:, 2] > 0.5).float()  # One bit.
    scores = score_by_entropy(
        model, [axis], [{"x": values}], lambda batch: model(batch["x"]).sum()
    )["inner"]
    assert scores[1] == 0
    assert (scores[0] / scores[2]).item() == pytest.approx(np.log(32) / np.log(2), rel=0.02)


def test_gradient_is_the_norm_of_the_gradient_of_the_columns():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([3.0, 0.0, 1.0])))
    axis = inner_axis(Cut("0.weight", 0), Cut("1.weight", 1))
    scores = score_by_gradient(
        model, [axis], [{"x": torch.ones(1, 3)}], lambda batch: model(batch["x"]).sum()
    )["inner"]
    torch.testing.assert_close(scores, torch.tensor([0.75, 0.0, 0.25], dtype=torch.float64))


def test_magnitude_is_the_norm_of_the_weights_of_a_unit():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    axis = inner_axis(Cut("0.weight", 0), Cut("0.bias", 0), Cut("1.weight", 1))
    np.testing.assert_allclose(score_by_magnitude(model, [axis])["inner"], [5 / 6, 0, 1 / 6])
