"""The AutoAWQ format, compared with AutoAWQ's own code where it is installed (extra ``autoawq``).

AutoAWQ is archived and imports names that transformers no longer has. The code of the format does
not, so its packages are imported without their ``__init__``.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid

GROUP, INPUTS, OUTPUTS = 64, 192, 32


@pytest.fixture
def gemm(monkeypatch):
    try:
        root = importlib.metadata.distribution("autoawq").locate_file("awq")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("autoawq is not installed")
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed")
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        module = types.ModuleType(name)
        module.__path__ = [str(root) + name.removeprefix("awq").replace(".", "/")]
        monkeypatch.setitem(sys.modules, name, module)
    return importlib.import_module("awq.modules.linear.gemm")


@pytest.fixture
def packed():
    torch.manual_seed(0)
    shape = (OUTPUTS, INPUTS // GROUP)
    return PackedLinear(
        torch.randint(0, 16, (OUTPUTS, INPUTS), dtype=torch.uint8),
        (torch.rand(shape) + 0.01).half(),
        torch.randint(0, 16, shape, dtype=torch.uint8),
        WeightGrid(bits=4, group_size=GROUP),
    )


def test_autoawq_unpacks_the_same_weights(gemm, packed):
    tensors = PACKED_FORMATS["awq"].tensors(packed)
    reference = gemm.dequantize_gemm(
        tensors["qweight"], tensors["qzeros"], tensors["scales"].float(), 4, GROUP
    )
    assert torch.equal(reference.T, packed.dequantize())


@pytest.mark.filterwarnings("ignore")
def test_autoawq_packs_the_same_tensors(gemm, packed):
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = packed.dequantize()
    scales, zeros = packed.scales_OG.T.float().contiguous(), packed.zeros_OG.T.contiguous()
    reference = gemm.WQLinear_GEMM.from_linear(
        linear, 4, GROUP, scales=scales, zeros=zeros
    ).state_dict()
    tensors = PACKED_FORMATS["awq"].tensors(packed)
    assert set(reference) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(reference[name], tensor), name
