"""``llm.mnn.weight``: linear layers of a decoder with their integers, and the table of tokens.

A packed layer is the byte 2, outputs and inputs as int16 (int32 if one exceeds 65,535), the values
of the integers, the integers row by row, then what each block needs, in float32. With zero-points
w = (q − half)·scale + bias, and two numbers are stored, (half − z)·scale and the scale; without,
w = (q − half)·scale. Two integers of 4 bits share a byte, the first in its upper half. All of it is
exact: a float32 holds the product of a float16 scale and an integer.

Shapes: O outputs, I inputs, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from compressor.models.quantized.packed_linear import PackedLinear
from passes.export_mnn.decoder_limits import BLOCK

Array = np.ndarray[Any, Any]
_BYTE_VALUES = 256
_SHORT = 65_535
_TABLE_BITS, _HALF_BITS = 8, 16


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """Place of a linear layer in the file."""

    quantization: dict[str, Any]
    """``quanParameter`` of MNN's convolution."""
    external: tuple[int, int, int, int, int]
    """Offset; bytes of weights with their header, of scales, and of the bias."""
    header_bytes: int

    def as_table(self, bits: int, width: int) -> list[int]:
        """Return ``tie_embeddings`` of llm_config.json: where the engine reads tokens' rows.

        Args:
            bits: of an integer; 16 for float16 values.
            width: values of a block; 0 for float16.
        """
        offset, weight_bytes, scale_bytes, _, _ = self.external
        end = offset + weight_bytes
        return [offset + self.header_bytes, end, scale_bytes, bits, width]


class WeightFile:
    """The file while it is written."""

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._file = path.open("wb")
        self._offset = 0

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def packed(self, layer: PackedLinear, bias: Array) -> StoredLayer:
        """Append a packed layer."""
        scales_OG = layer.scales_OG.float().numpy()
        integers_OI, bits = layer.integers_OI.numpy(), layer.grid.bits
        if layer.grid.symmetric:
            return self._integers(integers_OI, bits, scales_OG, bias)
        half = np.float32(1 << (bits - 1))
        offsets_OG = (half - layer.zeros_OG.float().numpy()) * scales_OG
        return self._integers(integers_OI, bits, np.stack([offsets_OG, scales_OG], -1), bias)

    def rounded(self, values_OI: Tensor, bias: Array) -> tuple[StoredLayer, float]:
        """Append a float layer in 8 bits with a scale for every 32 values; also its error."""
        outputs, inputs = values_OI.shape
        blocks = values_OI.float().numpy().reshape(outputs, inputs // BLOCK, BLOCK)
        scales = (np.abs(blocks).max(-1) / 127).astype(np.float16).astype(np.float32)
        divisors = np.where(scales == 0, np.float32(1), scales)
        integers = np.clip(np.rint(blocks / divisors[..., None]), -127, 127)
        relative = _relative_error(integers * scales[..., None], blocks)
        shifted = (integers + 128).astype(np.uint8).reshape(outputs, inputs)
        return self._integers(shifted, _TABLE_BITS, scales, bias), relative

    def float16(self, values_OI: Tensor, bias: Array) -> tuple[StoredLayer, float]:
        """Append a float layer in float16; also the relative error of that."""
        values = values_OI.float().numpy()
        halves = values.astype("<f2")
        external = self._append(halves.tobytes(), b"", bias)
        relative = _relative_error(halves.astype(np.float32), values)
        return StoredLayer({"type": 3}, external, 0), relative

    def _integers(self, integers_OI: Array, bits: int, scales: Array, bias: Array) -> StoredLayer:
        outputs, inputs = integers_OI.shape
        is_wide = max(outputs, inputs) > _SHORT
        half = 1 << (bits - 1)
        values = [0 if 2 * half == _BYTE_VALUES else 2 * half, *range(-half, half)]
        sizes = np.array([outputs, inputs], "<i4" if is_wide else "<u2")
        header = b"\x02" + sizes.tobytes() + np.array(values, np.int8).tobytes()
        flat = integers_OI.astype(np.uint8).reshape(-1)
        packed = flat if bits == _TABLE_BITS else flat[::2] << 4 | flat[1::2]
        alphas = scales.astype("<f4").tobytes()
        external = self._append(header + packed.tobytes(), alphas, bias)
        has_offsets = scales.ndim == 3
        quantization = {
            "quantScale": 1.0,
            "scaleIn": 0.0,
            "scaleOut": 0.0,
            "useInt32": False,
            "has_scaleInt": False,
            "shapeInt32": is_wide,
            "type": 1,
            "aMaxOrBits": bits,
            "aMin": int(has_offsets),
            "readType": outputs * scales.shape[1] if has_offsets else 0,
            "weightSize": 0,
        }
        return StoredLayer(quantization, external, len(header))

    def _append(self, weights: bytes, scales: bytes, bias: Array) -> tuple[int, int, int, int, int]:
        last = bias.astype("<f4").tobytes()
        for part in (weights, scales, last):
            self._file.write(part)
        external = (self._offset, len(weights), len(scales), len(last), 0)
        self._offset += sum(external[1:])
        return external


def _relative_error(stored: Array, values: Array) -> float:
    size = float(np.linalg.norm(values))
    return float(np.linalg.norm(stored - values)) / size if size else 0.0
