"""Tracing of classes with the corrections of transformers."""

import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

from passes.export_onnx.class_tracing import trace_class
from passes.export_onnx.tracing import GraphInterface


class Bias(nn.Module):
    """An additive mask, as XLNet computes it."""

    def forward(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return ((1.0 - mask) * -2.0,)


def test_differences_of_a_float_and_integers_are_traced() -> None:
    interface = GraphInterface(["mask"], ["bias"], ({0: "batch", 1: "length"},), 20)
    graph = trace_class(Bias(), (torch.ones(2, 6, dtype=torch.int64),), interface)
    mask = torch.tensor([[1, 1, 0]] * 3)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    (bias,) = session.run(None, {"mask": mask.numpy()})
    assert torch.equal(torch.from_numpy(bias), Bias()(mask)[0])
