"""Accuracy of a model with one label per token."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.contract import Dataset
from passes.common.accuracy import evaluate_accuracy


class Tokens(Dataset):
    """Three samples of four tokens, with 4, 2 and 1 correct predictions."""

    input_names = ("x",)
    label_name = "label"

    def __len__(self):
        return 3

    def batch(self, indices, epoch=0):
        label = np.array([[0, 1, 2, 0], [1, 1, 1, 1], [2, 2, 0, 0]])[indices]
        predicted = np.array([[0, 1, 2, 0], [1, 1, 0, 0], [0, 2, 2, 2]])[indices]
        return {"x": np.eye(3, dtype=np.float32)[predicted] * 20, "label": label}


class Identity(nn.Module):
    """Returns its input as logits."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return {"logits": self.scale * x}


def test_the_accuracy_of_a_sample_is_the_part_of_correct_tokens():
    evaluation = evaluate_accuracy(Identity(), Tokens(), batch_size=2)
    np.testing.assert_allclose(evaluation.correct, [1, 0.5, 0.25])
    np.testing.assert_allclose(evaluation.loss, [0, 10, 15], atol=1e-4)
    assert evaluation.accuracy == pytest.approx(1.75 / 3)
