"""Tensors of a GGUF file: type and content of each, read one at a time.

Shapes: O rows of a matrix, I values of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from compressor.errors import NumericalError
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.models.quantized.packed_linear import PackedLinear
from passes.export_gguf.block_types import BLOCK, BlockType, block_type
from passes.export_gguf.blocks import Array, blocks_of

FLOAT_TYPES = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
_TORCH = {kind: dtype for dtype, kind in FLOAT_TYPES.items()}
_ROWS = 4096
"""Rows of a table that are rounded together."""
_ELEMENT_BYTES = {
    GGMLQuantizationType.F32: 4,
    GGMLQuantizationType.F16: 2,
    GGMLQuantizationType.BF16: 2,
}


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of the file."""

    name: str
    source: str
    """Name in the checkpoint; empty for tensors that state hyperparameters."""
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    read: Callable[[], Array]
    """Return the content: float32 for F32, else bytes as uint8, row by row."""
    expected: Callable[[], Tensor]
    """Return the weights that the file has to hold, as float32."""
    is_exact: bool = True
    """False for a table that is rounded to 8 bits."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        if self.type in _ELEMENT_BYTES:
            return _ELEMENT_BYTES[self.type] * self.shape[-1]
        values, size = gguf.GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // int(values) * int(size)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape[:-1]) * self.row_bytes


def stated_tensor(name: str, values: Array) -> FileTensor:
    """Return a float32 tensor that states hyperparameters."""
    return FileTensor(
        name,
        "",
        GGMLQuantizationType.F32,
        values.shape,
        lambda: values,
        lambda: torch.from_numpy(values),
    )


def packed_tensor(
    name: str, layer: str, packed: PackedTensors, order: Tensor | None = None
) -> FileTensor:
    """Return the tensor of a packed layer, whose integers are carried over.

    Args:
        name: in the file.
        layer: in the checkpoint, with a grid that has a block type.
        packed: the checkpoint.
        order: of its rows in the file; None if they stay as they are.
    """

    def read_layer() -> PackedLinear:
        linear = packed.layer(layer)
        return linear if order is None else linear.take_rows(order)

    return FileTensor(
        name,
        f"{layer}.weight",
        GGMLQuantizationType[block_type(packed.grid(layer)).name],
        packed.size(layer),
        lambda: blocks_of(read_layer()),
        lambda: read_layer().dequantize(),
    )


@dataclass(frozen=True, slots=True)
class FloatSource:
    """Values of a tensor that is not packed."""

    name: str
    """In the checkpoint."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def float_tensor(name: str, source: FloatSource, target: GGMLQuantizationType) -> FileTensor:
    """Return the tensor of values that are not packed.

    Args:
        name: in the file.
        source: the values.
        target: a float type, or Q8_0, which rounds them.
    """

    def expected() -> Tensor:
        values = source.read()
        return values.float() if target not in _TORCH else values.to(_TORCH[target]).float()

    return FileTensor(
        name,
        source.name,
        target,
        source.shape,
        lambda: _content(source, target),
        expected,
        is_exact=target is not GGMLQuantizationType.Q8_0,
    )


def _content(source: FloatSource, target: GGMLQuantizationType) -> Array:
    """Return float32 values, or the bytes of any other type as uint8.

    Raises:
        NumericalError: values exceed the range of the type.
    """
    values = source.read()
    if target is GGMLQuantizationType.Q8_0:
        return _rounded_to_8_bits(values)
    converted = values.to(_TORCH[target]).contiguous()
    if not bool(converted.isfinite().all()):
        raise NumericalError(
            f"{source.name} holds values up to {float(values.abs().max()):g}, too large for "
            f"{target.name}",
            remedy="set `dtype: bfloat16` and `tables: bfloat16`",
        )
    if target is GGMLQuantizationType.F32:
        array: Array = converted.numpy()
        return array
    return converted.view(torch.uint8).numpy()


def _rounded_to_8_bits(values_OI: Tensor) -> Array:
    """Return Q8_0 blocks whose scale is the largest magnitude over 127, rounded to float16."""
    outputs, inputs = values_OI.shape
    blocks = np.empty((outputs, inputs // BLOCK * BlockType.Q8_0.value), np.uint8)
    for start in range(0, outputs, _ROWS):
        rows = values_OI[start : start + _ROWS].float().numpy()
        blocks[start : start + _ROWS] = gguf.quants.quantize(rows, GGMLQuantizationType.Q8_0)
    return blocks
