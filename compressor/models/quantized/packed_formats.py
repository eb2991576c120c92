"""On-disk formats of packed weights: AutoAWQ's GEMM, and compressed-tensors' ``pack-quantized``.

Shapes: O outputs, I inputs, G groups of a row, N rows, M values of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.models.quantized.bit_packing import pack_bits, unpack_bits
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.packing_schemes import (
    AutoAwqScheme,
    PackingScheme,
    PackQuantizedScheme,
)
from compressor.models.quantized.weight_grid import WeightGrid


class PackedFormat(PackingScheme):
    """Tensors of packed layers in safetensors."""

    @abstractmethod
    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """Return the layer as contiguous tensors by suffix."""

    @abstractmethod
    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Return the layer that ``tensors`` were made of, bit for bit."""


class AutoAwqGemm(AutoAwqScheme, PackedFormat):
    """AutoAWQ's GEMM: eight outputs per int32 in the order of the CUDA kernel."""

    _ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
    """Output, of eight, that each nibble holds, lowest nibble first."""

    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """Return ``qweight`` int32 [I, O/8], ``qzeros`` int32 [G, O/8], ``scales`` [G, O]."""
        return {
            "qweight": self._pack(packed.integers_OI.T),
            "qzeros": self._pack(packed.zeros_OG.T),
            "scales": packed.scales_OG.T.contiguous(),
        }

    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Return the layer; see ``PackedFormat.linear``."""
        return PackedLinear(
            self._unpack(tensors["qweight"]).T.contiguous(),
            tensors["scales"].T.contiguous(),
            self._unpack(tensors["qzeros"]).T.contiguous(),
            grid,
        )

    def _pack(self, values_NM: Tensor) -> Tensor:
        eights = values_NM.reshape(len(values_NM), -1, 8)[:, :, list(self._ORDER)]
        return pack_bits(eights.flatten(1), 4)

    def _unpack(self, words: Tensor) -> Tensor:
        eights = unpack_bits(words, 4, 8 * words.shape[1]).view(len(words), -1, 8)
        return eights[:, :, torch.tensor(self._ORDER).argsort()].flatten(1)


class CompressedTensors(PackQuantizedScheme, PackedFormat):
    """``pack-quantized``: rows of signed integers, shifted by half the range, as a bit stream."""

    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """Return the layer's tensors.

        ``weight_packed`` int32 [O, I·bits/32], ``weight_scale`` [O, G], ``weight_shape`` [2], and
        unless the grid is symmetric ``weight_zero_point`` int32 [O·bits/32, G].
        """
        grid = packed.grid
        tensors = {
            "weight_packed": pack_bits(packed.integers_OI, grid.bits),
            "weight_scale": packed.scales_OG.contiguous(),
            "weight_shape": torch.tensor(packed.integers_OI.shape),
        }
        if not grid.symmetric:
            tensors["weight_zero_point"] = pack_bits(packed.zeros_OG.T, grid.bits).T.contiguous()
        return tensors

    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Return the layer; see ``PackedFormat.linear``."""
        outputs, inputs = tensors["weight_shape"].tolist()
        scales = tensors["weight_scale"]
        zeros = torch.full(scales.shape, grid.middle, dtype=torch.uint8)
        if not grid.symmetric:
            zeros = unpack_bits(tensors["weight_zero_point"].T, grid.bits, outputs).T.contiguous()
        return PackedLinear(
            unpack_bits(tensors["weight_packed"], grid.bits, inputs), scales, zeros, grid
        )


PACKED_FORMATS: Mapping[str, PackedFormat] = {
    format_.name: format_ for format_ in (AutoAwqGemm(), CompressedTensors())
}
"""``quant_method`` to its format."""
