"""Contrastive losses against their definitions, and the memory and gradient of chunks."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.models.capabilities.training_heads import TrainingHeads
from passes.common.contrastive import equal_pairs, in_chunks, infonce, sigmoid_loss, soft_infonce
from passes.common.losses import hard_cross_entropy
from tests.support.tiny_models import PHONE, build_model


def embeddings(count=6, width=8):
    generator = torch.Generator().manual_seed(count)
    pairs = torch.randn(2, count, width, generator=generator, dtype=torch.float64)
    return functional.normalize(pairs, dim=-1)


def test_infonce_is_the_mean_negative_log_probability_of_the_own_pair():
    first, second = embeddings()
    expected = 0.0
    for one, other in ((first, second), (second, first)):
        for n in range(6):
            weights = [torch.exp(one[n] @ other[m] / 0.07) for m in range(6)]
            expected -= torch.log(weights[n] / sum(weights)) / 12
    assert infonce(first, second, 1 / 0.07) == pytest.approx(expected.item(), rel=1e-9)


def test_the_sigmoid_loss_classifies_each_pair_by_itself():
    first, second = embeddings()
    expected = 0.0
    for n in range(6):
        for m in range(6):
            sign = 1 if n == m else -1
            expected -= torch.log(torch.sigmoid(sign * (10 * first[n] @ second[m] - 10))) / 6
    assert sigmoid_loss(first, second, 10, -10) == pytest.approx(expected.item(), rel=1e-9)


def test_soft_labels_are_the_softmax_of_the_teachers_products():
    first, second = embeddings()
    (other,) = (values[0] for values in [embeddings(6, 4)])
    target = other @ other.T
    expected = 0.0
    for ours, theirs in ((first @ second.T, target), (second @ first.T, target.T)):
        student, teacher = ((5.0 * scores).softmax(dim=-1) for scores in (ours, theirs))
        expected += (teacher * (teacher / student).log()).sum(dim=-1).mean() / 2
    value = soft_infonce(first, second, target, torch.tensor(5.0))
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert soft_infonce(first, second, first @ second.T, 5.0) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("loss", [infonce, lambda *args: sigmoid_loss(*args[:3], -3.0, args[3])])
def test_pairs_that_share_something_are_no_negatives(loss):
    first, second = (values.clone().requires_grad_(True) for values in embeddings())
    ignored = equal_pairs(torch.tensor([0, 0, 1, 2, 3, 4]), torch.eye(6)[[0, 1, 2, 2, 4, 5]])
    assert ignored.nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    moved = second.detach().clone()
    moved[1] += 0.5  # no negative of pair 0, which shares its first key, and one of the others
    gradients = [
        torch.autograd.grad(loss(first, values, 5.0, ignored), first)[0]
        for values in (second, moved)
    ]
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert not torch.allclose(gradients[0][2], gradients[1][2])


def test_the_alignment_of_the_phone_model_is_infonce_with_its_prototypes():
    model = build_model(PHONE, PHONE.presets["tiny"]).train()
    config = model.config
    torch.manual_seed(0)
    shape = 2, config.cells, config.shared
    cells = functional.normalize(torch.randn(shape), dim=-1).requires_grad_(True)
    command = functional.normalize(torch.randn(2, 5, config.shared), dim=-1)
    labels = torch.randint(config.concepts, (2, config.cells))
    heads = model.concept_logits({"command": command, "cells": cells})
    term = hard_cross_entropy(heads, {"cell_concepts": labels})["cell_concepts"]
    prototypes = functional.normalize(model.concepts, dim=-1)
    scores = (cells @ prototypes.T / config.temperature).flatten(0, -2)
    expected = functional.cross_entropy(scores, labels.flatten())
    assert term.item() == expected.item()
    assert PHONE.capability(TrainingHeads, config) is not None


class Tower(nn.Module):
    """An encoder that counts the rows whose activations are alive."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.0), nn.Linear(64, 8))
        self.alive = []
        self.most = 0

    def forward(self, values):
        inner = self.layers[0](values)
        self.alive = [ref for ref in self.alive if ref() is not None]
        self.alive.append(weakref.ref(inner))
        self.most = max(self.most, sum(len(ref()) for ref in self.alive))
        return (functional.normalize(self.layers[1:](inner.square()), dim=-1),)


def loss_of(tower, pairs, chunk_size):
    rows = torch.cat([*pairs.float()])
    outputs = tower(rows)[0] if chunk_size is None else in_chunks(tower, [rows], chunk_size)[0]
    loss = infonce(*outputs.chunk(2), 1 / 0.07)
    loss.backward()
    return loss.item(), [weight.grad.clone() for weight in tower.parameters()]


@pytest.mark.parametrize("chunk_size", [1, 5, 16])
def test_chunks_have_the_gradient_of_the_whole_batch_and_the_memory_of_one(chunk_size):
    torch.manual_seed(0)
    whole, chunked = Tower(), Tower()
    chunked.load_state_dict(whole.state_dict())
    pairs = embeddings(16)
    value, gradients = loss_of(whole, pairs, None)
    chunked_value, chunked_gradients = loss_of(chunked, pairs, chunk_size)
    assert chunked_value == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(chunked_gradients, gradients, rtol=1e-4, atol=1e-6)
    assert (whole.most, chunked.most) == (32, chunk_size)


def test_dropout_is_the_same_in_both_passes_of_a_chunk():
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    rows = torch.randn(4, 8)
    torch.manual_seed(1)
    (outputs,) = in_chunks(lambda values: (tower(values),), [rows], 4)
    outputs.sum().backward()
    torch.testing.assert_close(tower[0].bias.grad, 2.0 * (outputs != 0).sum(dim=0).float())
