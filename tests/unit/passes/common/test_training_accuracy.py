"""Right or wrong, sample by sample: also where a sample has an answer for each token."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.data.contract import Dataset
from passes.common.accuracy import evaluate_accuracy


class Tokens(Dataset):
    input_names = ("x",)
    label_name = "label"

    def __len__(self):
        return 3

    def batch(self, indices, epoch=0):
        label = np.array([[0, 1, 2, 0], [1, 1, 1, 1], [2, 2, 0, 0]])[indices]
        said = np.array([[0, 1, 2, 0], [1, 1, 0, 0], [0, 2, 2, 2]])[indices]
        return {"x": np.eye(3, dtype=np.float32)[said] * 20, "label": label}


class Same(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return {"logits": self.one * x}


def test_a_sample_of_tokens_counts_by_the_part_that_is_right():
    found = evaluate_accuracy(Same(), Tokens(), batch_size=2)
    np.testing.assert_allclose(found.correct, [1, 0.5, 0.25])
    np.testing.assert_allclose(found.loss, [0, 10, 15], atol=1e-4)
    assert found.accuracy == pytest.approx(1.75 / 3)
