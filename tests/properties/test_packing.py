"""Packed weights: packing is lossless, and rounding errs by at most half a step."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.models.quantized.bit_packing import (
    pack_bits,
    pack_bytes,
    unpack_bits,
    unpack_bytes,
)
from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid
from passes.common.weight_rounding.grids import ScaleFormat, round_to_nearest, search_grids

BITS = st.sampled_from([2, 3, 4, 8])


@given(bits=BITS, rows=st.integers(1, 9), count=st.integers(1, 70), seed=st.integers(0, 99))
def test_unpacking_inverts_packing(bits, rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1 << bits, (rows, count), dtype=torch.uint8, generator=generator)
    words = pack_bits(values, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-count * bits // 32))
    assert torch.equal(unpack_bits(words, bits, count), values)
    for row, row_words in zip(values.tolist(), words, strict=True):
        stream = int.from_bytes(row_words.numpy().tobytes(), "little")
        assert stream == sum(value << (index * bits) for index, value in enumerate(row))


@given(bits=st.sampled_from([1, 2, 4, 8]), shape=st.tuples(*[st.integers(1, 9)] * 3))
def test_bytes_and_words_are_the_same_bit_stream(bits, shape):
    values = torch.randint(0, 1 << bits, shape, dtype=torch.uint8)
    octets = pack_bytes(values, bits)
    assert octets.shape == (*shape[:2], -(-shape[2] * bits // 8))
    assert torch.equal(unpack_bytes(octets, bits)[..., : shape[2]], values)
    words = pack_bits(values.flatten(0, 1), bits).view(torch.uint8)
    assert torch.equal(words[:, : octets.shape[2]], octets.flatten(0, 1))


@given(
    bits=BITS,
    groups=st.integers(1, 3),
    width=st.sampled_from([8, 24, 32]),
    symmetric=st.booleans(),
    whole_rows=st.booleans(),
)
@settings(deadline=None)
def test_every_format_stores_integers_scales_zeros_and_grid_without_loss(
    bits, groups, width, symmetric, whole_rows
):
    grid = WeightGrid(bits=bits, group_size=-1 if whole_rows else width, symmetric=symmetric)
    inputs, outputs = groups * width, 32
    count = inputs // grid.width(inputs)
    zeros = (
        torch.full((outputs, count), grid.middle)
        if symmetric
        else torch.randint(0, 1 << bits, (outputs, count))
    )
    packed = PackedLinear(
        torch.randint(0, 1 << bits, (outputs, inputs), dtype=torch.uint8),
        torch.rand(outputs, count).half(),
        zeros.to(torch.uint8),
        grid,
    )
    for packed_format in PACKED_FORMATS.values():
        if packed_format.problems(grid, outputs, inputs):
            continue
        restored = packed_format.linear(packed_format.tensors(packed), grid)
        assert torch.equal(restored.integers_OI, packed.integers_OI)
        assert torch.equal(restored.scales_OG, packed.scales_OG)
        assert torch.equal(restored.zeros_OG, packed.zeros_OG)
        if packed_format.name == "compressed-tensors" or not symmetric:
            config = packed_format.config({grid: ["a"]}, ["lm_head"])
            assert packed_format.grids(config)("a") == grid


@given(
    bits=BITS,
    symmetric=st.booleans(),
    low=st.floats(-4, 4),
    spread=st.floats(0.01, 4),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_rounding_to_nearest_errs_by_at_most_half_a_step(bits, symmetric, low, spread, seed):
    grid = WeightGrid(bits=bits, group_size=16, symmetric=symmetric)
    weight = low + spread * torch.rand(32, 5, generator=torch.Generator().manual_seed(seed))
    grids = search_grids(weight, torch.ones(32), grid, ScaleFormat(torch.float16), candidates=1)
    scale = grids.scale_GO
    assert torch.equal(scale, scale.half().float())
    error = (round_to_nearest(weight, grids) - weight).abs().view(2, 16, 5)
    # A symmetric grid has one integer less above than below zero, and float16 rounds the step.
    steps = 1.01 if symmetric else 0.5
    assert bool((error <= (steps + grid.highest * 2**-11) * scale.unsqueeze(1)).all())
