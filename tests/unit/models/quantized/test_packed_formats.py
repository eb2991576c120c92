"""Packed formats: order of the bits, descriptions in config.json, and unsupported variants."""

import pytest
import torch

from compressor.errors import ModelError
from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid

GRID = WeightGrid(bits=4, group_size=8)


def random_layer(outputs=16, inputs=16):
    return PackedLinear(
        torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8),
        torch.rand(outputs, inputs // 8).half(),
        torch.randint(0, 16, (outputs, inputs // 8), dtype=torch.uint8),
        GRID,
    )


def test_gemm_stores_outputs_in_the_order_of_the_kernel():
    packed = random_layer()
    tensors = PACKED_FORMATS["awq"].tensors(packed)
    assert tensors["qweight"].shape == (16, 2)
    assert tensors["qzeros"].shape == (2, 2)
    for row in range(16):
        for word in range(2):
            value = int(tensors["qweight"][row, word]) & 0xFFFFFFFF
            nibbles = [(value >> (4 * nibble)) & 15 for nibble in range(8)]
            columns = [8 * word + column for column in (0, 2, 4, 6, 1, 3, 5, 7)]
            assert nibbles == [int(packed.integers_OI[column, row]) for column in columns]


def test_compressed_tensors_unpacks_the_same_weights():
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    format_ = PACKED_FORMATS["compressed-tensors"]
    for bits, symmetric in ((4, False), (8, False), (4, True), (3, True)):
        grid = WeightGrid(bits=bits, group_size=8, symmetric=symmetric)
        zeros = (
            torch.full((32, 2), grid.middle)
            if symmetric
            else torch.randint(0, grid.highest + 1, (32, 2))
        )
        packed = PackedLinear(
            torch.randint(0, grid.highest + 1, (32, 16), dtype=torch.uint8),
            torch.rand(32, 2).half(),
            zeros.byte(),
            grid,
        )
        args = format_.config({grid: []}, [])["config_groups"]["group_0"]["weights"]
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        reference = PackedQuantizationCompressor.decompress(format_.tensors(packed), scheme)[
            "weight"
        ]
        assert torch.equal(reference, packed.dequantize().half())


def test_a_layer_takes_other_scales():
    packed = random_layer()
    halved = packed.with_scales(packed.scales_OG.float() / 2)
    assert torch.equal(halved.dequantize() * 2, packed.dequantize())
    assert torch.equal(packed.rows(3, 5).dequantize(), packed.dequantize()[3:5])


def test_layers_that_cannot_be_packed_have_problems():
    awq, compressed = PACKED_FORMATS["awq"], PACKED_FORMATS["compressed-tensors"]
    assert awq.problems(GRID, 16, 16) == []
    assert "no multiple of 8" in awq.problems(GRID, 12, 16)[0]
    assert "12 inputs are no multiple of the group size 8" in awq.problems(GRID, 16, 12)[0]
    assert "holds 4 bits, not 3" in awq.problems(WeightGrid(bits=3, group_size=8), 16, 16)[0]
    assert "fill no whole int32" in compressed.problems(GRID, 12, 16)[0]
    assert compressed.problems(WeightGrid(bits=3, group_size=-1, symmetric=True), 5, 7) == []


def test_unsupported_variants_are_refused():
    with pytest.raises(ModelError, match="version 'gemv'"):
        PACKED_FORMATS["awq"].grids({"bits": 4, "version": "gemv", "group_size": 128})
    with pytest.raises(ModelError, match="pack-quantized"):
        PACKED_FORMATS["compressed-tensors"].grids({"format": "int-quantized", "config_groups": {}})


def test_a_layer_has_the_grid_of_the_first_group_that_matches():
    format_ = PACKED_FORMATS["compressed-tensors"]
    three_bits = WeightGrid(bits=3, group_size=8)
    grids = format_.grids(
        format_.config(
            {GRID: ["model.layers.0.b", "model.layers.1.a"], three_bits: ["model.layers.0.a"]}, []
        )
    )
    assert grids("model.layers.0.a") == three_bits
    assert grids("model.layers.1.a") == GRID
    with pytest.raises(ModelError, match=r"no group that contains the layer model\.layers\.2\.a"):
        grids("model.layers.2.a")
    weights = {"num_bits": 8, "group_size": 32}
    tree = {
        "format": "pack-quantized",
        "config_groups": {"g": {"targets": ["re:.*down_proj"], "weights": weights}},
    }
    assert format_.grids(tree)("model.layers.0.mlp.down_proj") == WeightGrid(
        bits=8, group_size=32, symmetric=True
    )


@pytest.mark.parametrize(
    ("name", "tree", "message"),
    [
        ("awq", {"bits": 4}, "no `group_size`"),
        (
            "compressed-tensors",
            {"format": "pack-quantized", "config_groups": {"g": {"targets": []}}},
            "no `weights`",
        ),
        (
            "compressed-tensors",
            {
                "format": "pack-quantized",
                "config_groups": {"g": {"targets": [], "weights": {"num_bits": 5}}},
            },
            "unsupported weights",
        ),
    ],
)
def test_an_incomplete_description_is_refused(name, tree, message):
    with pytest.raises(ModelError, match=message):
        PACKED_FORMATS[name].grids(tree)


def test_effective_bits_include_scales_and_zero_points():
    assert WeightGrid(bits=4, group_size=64).effective_bits(128) == 4 + 20 / 64
    assert WeightGrid(bits=3, group_size=-1, symmetric=True).effective_bits(160) == 3.1
