import sys

import pytest
import torch
from torch import nn
from torch.export import Dim

from passes.export_onnx.symbolic_lengths import symbolic_lengths


class Flat(nn.Module):
    def forward(self, value):
        assert len([1, 2]) == 2
        return value.reshape(len(value), -1)


def exported():
    return torch.export.export(
        Flat(), (torch.zeros(2, 3, 4),), dynamic_shapes=({0: Dim("batch")},), strict=False
    )


def test_the_length_of_a_tensor_stays_variable():
    with symbolic_lengths(Flat()):
        program = exported()
    assert program.module()(torch.zeros(5, 3, 4)).shape == (5, 12)
    with pytest.raises(Exception, match="specialized"):
        exported()


def test_the_files_of_the_classes_are_as_before_afterwards():
    with pytest.raises(ValueError, match="stop"), symbolic_lengths(Flat()):
        assert "len" in vars(sys.modules[__name__])
        raise ValueError("stop")
    assert "len" not in vars(sys.modules[__name__])
