"""A checkpoint's tensors in the forms that operators take; read when the file is written, one at a time.

Shapes: I inputs, O outputs, K blocks of a row of S inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor

from compressor.graphs.blocks import BLOCK_TYPES
from compressor.models.checkpoint.checkpoint_files import CheckpointFiles
from compressor.models.quantized.bits import pack_bytes, unpack_bytes
from compressor.models.quantized.description import QUANTIZATION_CONFIG, WeightGrid, is_packed
from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.packed_linear import PackedLinear

Array = np.ndarray[Any, Any]
_SCALES = {torch.float16: ir.DataType.FLOAT16, torch.float32: ir.DataType.FLOAT}
_SCALE_SUFFIXES = ("scales", "weight_scale")
_HELD = 3
"""Layers that are kept unpacked: as many as read one input."""
BLOCKS = (256, 128, 64, 32, 16)
"""The sizes of blocks that MatMulNBits takes."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix of integers as MatMulNBits reads it."""

    outputs: int
    inputs: int
    bits: int
    size: int
    """Inputs of a block."""
    data: ir.LazyTensor
    """uint8 [O, K, S · bits / 8], the lower bits first."""
    scales: ir.LazyTensor
    """float16 [O, K]; float32 where they are bfloat16, which not every consumer reads."""
    zeros: ir.LazyTensor | None
    """uint8 [O · ⌈K · bits / 8⌉]; None where they are in the middle."""

    def standard(self) -> tuple[ir.LazyTensor, ir.LazyTensor, ir.LazyTensor | None]:
        """For DequantizeLinear: integers [I, O], scales [K, O] and zero-points [K, O].

        Unsigned; where zero-points are in the middle, signed integers and none, as TensorRT wants them.
        """
        count = self.inputs // self.size
        middle = 0 if self.zeros is not None else 1 << (self.bits - 1)
        dtype = BLOCK_TYPES[self.bits, self.zeros is None]

        def integers(data: ir.LazyTensor, columns: int) -> Tensor:
            held = torch.from_numpy(np.array(data.numpy())).view(self.outputs, -1)
            return (
                unpack_bytes(held, self.bits)[:, :columns].T.to(torch.int16) - middle
            ).contiguous()

        zeros = self.zeros
        return (
            _lazy(lambda: integers(self.data, self.inputs), dtype, (self.inputs, self.outputs)),
            _lazy(
                lambda: torch.from_numpy(np.array(self.scales.numpy())).T,
                self.scales.dtype,
                (count, self.outputs),
            ),
            None
            if zeros is None
            else _lazy(lambda: integers(zeros, count), dtype, (count, self.outputs)),
        )


class Weights:
    """Of one checkpoint, packed or not."""

    def __init__(self, folder: Path, tree: Mapping[str, Any]) -> None:
        self.files = CheckpointFiles(folder)
        self.packed = lru_cache(_HELD)(self._packed)
        """A packed layer as its file holds it; asked for its integers, its scales and its zero-points in turn."""
        self._grid_of: Callable[[str], WeightGrid] | None = None
        if is_packed(tree):
            self.kind = PACKED_FORMATS[tree[QUANTIZATION_CONFIG]["quant_method"]]
            self._grid_of = self.kind.grids(tree[QUANTIZATION_CONFIG])

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.files.entries

    def grid(self, linear: str) -> WeightGrid | None:
        """How a linear layer is packed; None where it is not."""
        if self._grid_of is None or self.has(f"{linear}.weight"):
            return None
        return self._grid_of(linear)

    def vector(self, name: str, offset: float = 0.0) -> Array:
        """float32, with ``offset`` added."""
        [(_, value)] = self.files.tensors([name])
        return (value.float() + offset).numpy()

    def vectors(self, names: Sequence[str]) -> Array:
        """One after another."""
        return np.concatenate([self.vector(name) for name in names])

    def table(self, name: str) -> ir.LazyTensor:
        """An embedding, float32 [V, hidden]."""
        return _lazy(lambda: self._float(name), ir.DataType.FLOAT, tuple(self.files.dtype_and_shape(name)[1]))

    def transposed(self, names: Sequence[str]) -> ir.LazyTensor:
        """The weights of linear layers that read one input, float32 [I, O of all]."""
        shapes = [self.files.dtype_and_shape(name)[1] for name in names]
        shape = (shapes[0][1], sum(one[0] for one in shapes))
        return _lazy(
            lambda: torch.cat([self._float(name) for name in names]).T, ir.DataType.FLOAT, shape
        )

    def blocks(self, linears: Sequence[str], shape: tuple[int, int]) -> Blocks:
        """Packed linear layers that read one input and share a grid, with their integers, scales and zero-points as they are."""
        grid = self.grid(linears[0])
        assert grid is not None  # noqa: S101  whoever calls has asked
        outputs, inputs = shape
        size = block_size(grid, inputs)

        def part(what: Callable[[PackedLinear], Tensor]) -> Callable[[], Tensor]:
            return lambda: torch.cat([what(self.packed(name)) for name in linears])

        dtype = torch.float16 if self._scales_of(linears[0]) == torch.float16 else torch.float32
        repeats = grid.width(inputs) // size
        count = inputs // size
        return Blocks(
            outputs,
            inputs,
            grid.bits,
            size,
            data=_lazy(
                part(lambda one: pack_bytes(one.integers_OI.view(-1, count, size), grid.bits)),
                ir.DataType.UINT8,
                (outputs, count, size * grid.bits // 8),
            ),
            scales=_lazy(
                part(lambda one: one.scales_OG.repeat_interleave(repeats, dim=1).to(dtype)),
                _SCALES[dtype],
                (outputs, count),
            ),
            zeros=None
            if grid.symmetric
            else _lazy(
                part(
                    lambda one: pack_bytes(
                        one.zeros_OG.repeat_interleave(repeats, dim=1), grid.bits
                    ).flatten()
                ),
                ir.DataType.UINT8,
                (outputs * -(-count * grid.bits // 8),),
            ),
        )

    def _scales_of(self, linear: str) -> torch.dtype:
        [name] = [
            name for name in (f"{linear}.{suffix}" for suffix in _SCALE_SUFFIXES) if self.has(name)
        ]
        return self.files.dtype_and_shape(name)[0]

    def _packed(self, linear: str) -> PackedLinear:
        grid = self.grid(linear)
        assert grid is not None  # noqa: S101
        names = [
            name
            for name in (f"{linear}.{suffix}" for suffix in self.kind.suffixes)
            if self.has(name)
        ]
        tensors = {name.rpartition(".")[2]: value for name, value in self.files.tensors(names)}
        return self.kind.linear(tensors, grid)

    def rounded_table(self, name: str, size: int) -> Blocks:
        """A table with 8 bits for each value, symmetric, in blocks of ``size``."""
        rows, width = self.files.dtype_and_shape(name)[1]
        count = width // size

        def scales() -> Tensor:
            peaks = self._float(name).view(rows, count, size).abs().amax(dim=2)
            return (peaks / 127).clamp(min=torch.finfo(torch.float16).tiny).half()

        def data() -> Tensor:
            steps = (
                self._float(name).view(rows, count, size) / scales().float().unsqueeze(2)
            ).round_()
            return steps.clamp_(-127, 127).add_(128).to(torch.uint8)

        return Blocks(
            rows,
            width,
            8,
            size,
            data=_lazy(data, ir.DataType.UINT8, (rows, count, size)),
            scales=_lazy(scales, ir.DataType.FLOAT16, (rows, count)),
            zeros=None,
        )

    def _float(self, name: str) -> Tensor:
        [(_, value)] = self.files.tensors([name])
        return value.float()


def block_size(grid: WeightGrid, inputs: int) -> int:
    """The largest size of block that MatMulNBits takes and that groups are made of; 0 where there is none."""
    return next((size for size in BLOCKS if grid.width(inputs) % size == 0), 0)


def _lazy(make: Callable[[], Tensor], dtype: ir.DataType, shape: Sequence[int]) -> ir.LazyTensor:
    def made() -> ir.TensorProtocol:
        value = make().contiguous()
        assert math.prod(shape) == value.numel()  # noqa: S101
        array = value.numpy().reshape(tuple(shape))
        return ir.tensor(array.astype(dtype.numpy()), dtype=dtype)

    return ir.LazyTensor(made, dtype=dtype, shape=ir.Shape(shape))
