"""Recurrent layers keep a variable length, whatever was traced before in the same process."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compressor.models.capabilities.traced_layers import TracedLayers
from passes.export_onnx.tracing import GraphInterface, trace


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(4, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x)[0],)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_length_stays_variable_after_the_layers_were_traced(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module = Recurrent(kind).eval().requires_grad_(requires_grad=False)
    TracedLayers(module, {"x": torch.zeros(2, 6, 4)})
    interface = GraphInterface(["x"], ["y"], ({0: "batch", 1: "length"},), 20)
    model = trace(module, (torch.zeros(2, 6, 4),), interface)
    assert [str(size) for size in model.graph.outputs[0].shape] == ["batch", "length", "8"]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    x = torch.randn(3, 9, 4)
    with torch.no_grad():
        expected = module(x)[0].numpy()
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-5)
    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        kernels = (
            getattr(kernel, "__module__", "") for kernel in operator._dispatch_cache.values()
        )
        assert "torch.export._patches" not in kernels
