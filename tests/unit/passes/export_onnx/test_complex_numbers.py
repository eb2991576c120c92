"""Complex numbers in traced classes: pairs of real tensors, as ONNX has no complex operators."""

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from passes.export_onnx.class_tracing import trace_class
from passes.export_onnx.complex_numbers import complex_as_pairs
from passes.export_onnx.tracing import GraphInterface


class Rotation(nn.Module):
    """Rotates pairs of channels by their positions, as Llama 4 does."""

    def forward(self, hidden):
        angles = torch.arange(hidden.shape[1]).float()[:, None] * torch.tensor([1.0, 0.1])
        factors = torch.polar(torch.ones_like(angles), angles) * 0.5
        pairs = torch.view_as_complex(hidden.reshape(*hidden.shape[:-1], -1, 2))
        return (torch.view_as_real(pairs * factors[None, :, :]).flatten(2),)


def test_a_rotation_by_complex_numbers_is_traced():
    interface = GraphInterface(["hidden"], ["rotated"], ({0: "batch", 1: "length"},), 20)
    graph = trace_class(Rotation(), (torch.randn(2, 6, 4),), interface)
    hidden = torch.randn(3, 9, 4)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    (rotated,) = session.run(None, {"hidden": hidden.numpy()})
    assert torch.allclose(torch.from_numpy(rotated), Rotation()(hidden)[0], atol=1e-6)


def test_pairs_compute_what_complex_tensors_do():
    first, second = torch.randn(2, 3, 4, 2)

    def compute():
        a, b = torch.view_as_complex(first), torch.view_as_complex(second)
        size, angle = first.abs()[..., 0], second[..., 0]
        values = [a * b, torch.mul(2.0, a), a + b, -a, a.conj() * b, torch.polar(size, angle)]
        values += [torch.complex(size, angle).unsqueeze(0).transpose(1, 2)[0], torch.add(a, b)]
        return [torch.view_as_real(value) for value in values]

    expected = compute()
    with complex_as_pairs():
        actual = compute()
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(actual, expected, strict=True))


def test_what_pairs_cannot_compute_is_named():
    with complex_as_pairs():
        pair = torch.view_as_complex(torch.randn(3, 2))
        with pytest.raises(AttributeError, match="complex tensors have no exp"):
            torch.exp(pair)
