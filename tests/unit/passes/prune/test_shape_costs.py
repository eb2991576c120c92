"""MACs by tensor of modules, from the operators of one run."""

import json

import pytest
import torch
from torch import nn

from compressor.config.permission import allow_code
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.family import Module
from passes.prune.model import PrunableModel
from passes.prune.shape_costs import shape_costs

CODE = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 5, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x):
        x = x + self.positions
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))
"""


@pytest.fixture
def model():
    tree = {
        "python": "model.py:Model",
        "code": {"model.py": CODE},
        "inputs": [{"name": "x", "shape": ["batch", 5, 16]}],
        "outputs": [{"name": "logits", "path": []}],
    }
    allow_code()
    family, config = Module(), ModuleConfig.model_validate_json(json.dumps(tree))
    module = family.build(config).eval()
    return PrunableModel(family, config, module, {"x": torch.randn(2, 5, 16)})


def test_macs_by_tensor_add_up_and_follow_the_operators(model):
    macs = shape_costs(model).macs
    assert sum(macs.values()) == pytest.approx(model.family.macs(model.config))
    share = macs["encoder.up.weight"] / macs["head.weight"]
    assert share == pytest.approx((5 * 16 * 32) / (16 * 3))
    assert macs.get("encoder.positions", 0) == 0
    attention = macs["encoder.attention.in_proj_weight"] + macs["encoder.attention.out_proj.weight"]
    assert attention >= 5 * 4 * 16 * 16


def test_the_fast_path_of_attention_is_switched_on_again(model):
    before = torch.backends.mha.get_fastpath_enabled()
    shape_costs(model)
    assert torch.backends.mha.get_fastpath_enabled() is before
    assert isinstance(model.module.get_submodule("encoder.attention"), nn.MultiheadAttention)
