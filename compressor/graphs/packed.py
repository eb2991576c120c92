"""Layers of packed integers in ONNX Runtime's graphs, and the same weights in 8 bits with one scale for each output.

Shapes: O outputs, I inputs, K groups of S inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]
_INTEGERS = 4
"""The `accuracy_level` at which ONNX Runtime multiplies integers; a file that asks for floats is taken at its word."""
_LEAST = 1e-30
"""A peak that an output without weights has."""
_AT_ONCE = 1 << 16
"""Weights that are unpacked at a time: their floats stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A MatMulNBits that multiplies integers."""

    node: ir.Node
    outputs: int
    inputs: int
    bits: int
    data_OKS: Array
    """uint8 [O, K, S · bits / 8]."""
    scales_OK: Array
    zeros: Array | None
    """uint8, of each output ⌈K · bits / 8⌉; None where they are in the middle."""
    bias_O: Array | None

    @classmethod
    def of(cls, node: ir.Node) -> PackedLayer | None:
        """None where the node is another or multiplies floats, or reads what is computed, reordered or no integer."""
        if (
            node.op_type != "MatMulNBits"
            or node.attributes.get_int("accuracy_level", 0) != _INTEGERS
        ):
            return None
        outputs, inputs, bits = (node.attributes.get_int(name, 4) for name in ("N", "K", "bits"))
        given = (*node.inputs[1:], *[None] * 4)[:5]
        arrays = [None if value is None else held(value) for value in given]
        data, scales, zeros, order, bias = arrays
        if data is None or scales is None or order is not None:
            return None
        if any(
            value is not None and array is None for value, array in zip(given, arrays, strict=True)
        ):
            return None
        if zeros is not None and zeros.dtype != np.uint8:
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

    def peaks(self) -> Array:
        """The largest value that the groups of each output can hold, float32, above 0."""
        zeros_OK = self._zeros_of(slice(None))
        most_OK = np.maximum(zeros_OK, (1 << self.bits) - 1 - zeros_OK)
        found_O = (np.abs(self.scales_OK.astype(np.float32)) * most_OK).max(axis=1)
        peaks_O: Array = np.maximum(found_O, _LEAST)
        return peaks_O

    def integers(self, some: slice, scales_O: Array) -> Array:
        """Some of its outputs rounded to steps of ``scales_O``, int8 [I, O]."""
        data_OKS, zeros_OK = self.data_OKS[some], self._zeros_of(some)
        steps_OK = self.scales_OK[some].astype(np.float32) / scales_O[:, None]
        found_IO = np.empty((self.inputs, len(scales_O)), dtype=np.int8)
        count = max(1, _AT_ONCE // self.inputs)
        for start in range(0, len(scales_O), count):
            rows = slice(start, start + count)
            weights_OKS = _unpacked(data_OKS[rows], self.bits)
            weights_OKS -= zeros_OK[rows, :, None]
            weights_OKS *= steps_OK[rows, :, None]
            np.rint(weights_OKS, out=weights_OKS)
            found_IO[:, rows] = weights_OKS.reshape(len(weights_OKS), -1)[:, : self.inputs].T
        return found_IO

    def _zeros_of(self, some: slice) -> Array:
        steps_OK = self.scales_OK[some]
        if self.zeros is None:
            return np.full(steps_OK.shape, 1 << (self.bits - 1), dtype=np.float32)
        return _unpacked(self.zeros[some], self.bits)[:, : steps_OK.shape[1]]


def _unpacked(octets: Array, bits: int) -> Array:
    """Integers of 2, 4 or 8 bits, the lowest first along the last axis, as float32."""
    each = 8 // bits
    found = np.empty((*octets.shape[:-1], octets.shape[-1] * each), dtype=np.float32)
    for place in range(each):
        found[..., place::each] = (octets >> (place * bits)) & ((1 << bits) - 1)
    return found


def held(value: ir.Value) -> Array | None:
    """What an initializer holds; of one that a Cast widens, before it. None of what is computed."""
    one = initializer(value)
    return None if one is None or one.const_value is None else one.const_value.numpy()


def initializer(value: ir.Value) -> ir.Value | None:
    """A value as the initializer that it is, or that a Cast makes it of; None of what is computed."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        before = producer.inputs[0]
        return before if before is not None and before.producer() is None else None
    return value if producer is None else None
