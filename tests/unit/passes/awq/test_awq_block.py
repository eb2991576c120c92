"""Results of finished modules that a block replays instead of computing them again."""

import torch
from torch import nn

from compressor.models.capabilities.discovered_groups import discover_sites
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.activations import Captures
from passes.awq.block import BlockCalibration, BlockQuantizer
from passes.awq.config import AwqConfig
from passes.awq.settings import QuantizationSettings
from passes.awq.valid_positions import MaskedPositions


class Feedforward(nn.Module):
    """Linear layers whose first is the only one of a module of its own."""

    def __init__(self):
        super().__init__()
        self.up = nn.Sequential(nn.Linear(32, 64), nn.Identity())
        self.down = nn.Linear(64, 32)

    def forward(self, x):
        return self.down(self.up(x).relu())


@torch.no_grad()
def test_stored_results_are_divided_when_a_scale_is_folded_into_their_layer(tmp_path):
    torch.manual_seed(0)
    layer = Feedforward().eval()
    layer.up[0].weight *= 1 + 5 * torch.rand(64, 1) ** 4
    x = torch.randn(4, 16, 32)
    sites = discover_sites(layer, lambda: layer(x))
    assert sites[0].block == "up"
    assert sites[1].source.module == "up.0"
    fields = {"calibration": {"data": "text"}, "format": "compressed-tensors", "bits": 8}
    settings = QuantizationSettings.of(
        AwqConfig.model_validate({**fields, "error_compensation": 0}), torch.float32
    )
    calibration = BlockCalibration(
        lambda: enumerate([lambda: layer(x)]),
        MaskedPositions([None]),
        Captures(tmp_path / "captures", 1 << 20),
        None,
    )
    grid = WeightGrid(bits=8, group_size=16)
    quantizer = BlockQuantizer(
        layer, sites, {site.name: grid for site in sites}, settings, calibration
    )
    quantizer.quantize()
    assert quantizer.report[1]["scale_exponent"] > 0
    replayed = quantizer.run(0, lambda: layer(x))
    assert torch.allclose(replayed, layer(x), atol=5e-3)  # scales are float16
