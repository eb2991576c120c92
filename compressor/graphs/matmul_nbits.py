"""Weights of MatMulNBits nodes, and the same weights in INT8 with one scale for each output.

Shapes: O outputs, I inputs, K groups of S inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import Array, initializer_array

INTEGER_LEVEL = 4
"""The ``accuracy_level`` at which ONNX Runtime rounds activations and multiplies integers."""
FLOAT_LEVEL = 1
"""The ``accuracy_level`` at which it multiplies in float32."""
_SMALLEST_MAGNITUDE = 1e-30
"""Magnitude of an output without weights."""
_UNPACKED_AT_ONCE = 1 << 16
"""Weights that are unpacked at a time: their floats stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class MatMulNBitsLayer:
    """A MatMulNBits node that multiplies integers, with its constants."""

    node: ir.Node
    outputs: int
    inputs: int
    bits: int
    data_OKS: Array
    """uint8 [O, K, S · bits / 8]."""
    scales_OK: Array
    zeros: Array | None
    """uint8 [O, ⌈K · bits / 8⌉]; None where all zero-points are in the middle."""
    bias_O: Array | None

    @classmethod
    def from_node(cls, node: ir.Node) -> MatMulNBitsLayer | None:
        """Return the layer of a node; None for other operators and unsupported forms.

        Unsupported are products in float, operands that are computed, reordered groups
        (``g_idx``) and zero-points in float.
        """
        level = node.attributes.get_int("accuracy_level", 0)
        if node.op_type != "MatMulNBits" or level != INTEGER_LEVEL:
            return None
        outputs, inputs, bits = (node.attributes.get_int(name, 4) for name in ("N", "K", "bits"))
        operands = (*node.inputs[1:], *[None] * 4)[:5]
        arrays = [None if value is None else initializer_array(value) for value in operands]
        data, scales, zeros, order, bias = arrays
        if data is None or scales is None or order is not None:
            return None
        is_computed = [
            value is not None and array is None
            for value, array in zip(operands, arrays, strict=True)
        ]
        if any(is_computed) or (zeros is not None and zeros.dtype != np.uint8):
            return None
        return cls(
            node,
            outputs,
            inputs,
            bits,
            data,
            scales.reshape(outputs, -1),
            None if zeros is None else zeros.reshape(outputs, -1),
            bias,
        )

    def max_magnitudes(self) -> Array:
        """Return the largest magnitude that each output's groups can represent.

        Returns:
            float32 [O], above 0.
        """
        zeros_OK = self._zeros(slice(None))
        steps_OK = np.maximum(zeros_OK, (1 << self.bits) - 1 - zeros_OK)
        magnitudes_O = (np.abs(self.scales_OK.astype(np.float32)) * steps_OK).max(axis=1)
        result_O: Array = np.maximum(magnitudes_O, _SMALLEST_MAGNITUDE)
        return result_O

    def requantize(self, outputs: slice, scales_O: Array) -> Array:
        """Round the weights of some outputs to multiples of new scales.

        Args:
            outputs: the outputs to round.
            scales_O: float32, one for each of these outputs.

        Returns:
            int8 [I, O].
        """
        data_OKS, zeros_OK = self.data_OKS[outputs], self._zeros(outputs)
        steps_OK = self.scales_OK[outputs].astype(np.float32) / scales_O[:, None]
        integers_IO = np.empty((self.inputs, len(scales_O)), dtype=np.int8)
        count = max(1, _UNPACKED_AT_ONCE // self.inputs)
        for start in range(0, len(scales_O), count):
            rows = slice(start, start + count)
            weights_OKS = _unpack(data_OKS[rows], self.bits)
            weights_OKS -= zeros_OK[rows, :, None]
            weights_OKS *= steps_OK[rows, :, None]
            np.rint(weights_OKS, out=weights_OKS)
            weights_OI = weights_OKS.reshape(len(weights_OKS), -1)[:, : self.inputs]
            integers_IO[:, rows] = weights_OI.T
        return integers_IO

    def _zeros(self, outputs: slice) -> Array:
        steps_OK = self.scales_OK[outputs]
        if self.zeros is None:
            return np.full(steps_OK.shape, 1 << (self.bits - 1), dtype=np.float32)
        return _unpack(self.zeros[outputs], self.bits)[:, : steps_OK.shape[1]]


def _unpack(packed: Array, bits: int) -> Array:
    """Unpack integers of 2, 4 or 8 bits, lowest bits first along the last axis, to float32."""
    per_byte = 8 // bits
    unpacked = np.empty((*packed.shape[:-1], packed.shape[-1] * per_byte), dtype=np.float32)
    for place in range(per_byte):
        unpacked[..., place::per_byte] = (packed >> (place * bits)) & ((1 << bits) - 1)
    return unpacked
