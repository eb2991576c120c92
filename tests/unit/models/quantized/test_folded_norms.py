"""What is left of a batch normalization that was folded into the layer before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.models.quantized.fake_quantization import fold_norms


class NormWithActivation(nn.BatchNorm2d):
    """A normalization with an activation of its own, as timm has it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def check(norm: nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 2, 1)).eval()
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
        fold_norms(net, {"0": "1"})
        assert torch.allclose(net(x), expected, atol=1e-6)
        program = torch.export.export(net, (x,), strict=False)
    operators = {str(node.target) for node in program.graph.nodes}
    assert not any("batch_norm" in operator for operator in operators)
    return net


def test_nothing_is_left_of_a_plain_one() -> None:
    assert isinstance(check(nn.BatchNorm2d(4))[1], nn.Identity)


def test_a_subclass_keeps_its_activation() -> None:
    net = check(NormWithActivation(4))
    state = dict(net.state_dict())
    assert not any("1." in name for name in state)
    net.load_state_dict(state)  # as at the end of a training
