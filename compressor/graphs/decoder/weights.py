"""Weights of a checkpoint in the layouts that operators take.

Tensors are read when the graph is written, one at a time.

Shapes: I inputs, O outputs, V tokens of the vocabulary, K blocks of a row of S inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor.graphs.blocks import BLOCK_TYPES
from compressor.graphs.decoder.block_sizes import block_size
from compressor.graphs.decoder.stored_names import (
    converted_tensor,
    stored_experts,
    stored_names,
)
from compressor.graphs.values import Array
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.quantized.bit_packing import pack_bytes, unpack_bytes
from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid, is_packed

_SCALE_TYPES = {torch.float16: ir.DataType.FLOAT16, torch.float32: ir.DataType.FLOAT}
_SCALE_SUFFIXES = ("scales", "weight_scale")
_ALL = slice(None)
_CACHED_LAYERS = 3
"""Packed layers that stay in memory: as many as read one input."""
_CACHED_FUSED = 2
"""Converted tensors that stay in memory: those of the experts of a layer."""
_INT8_MAX, _INT8_ZERO_POINT = 127, 128


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix of integers in the layout of MatMulNBits."""

    outputs: int
    inputs: int
    bits: int
    size: int
    """Inputs of a block."""
    data: ir.LazyTensor
    """uint8 [O, K, S · bits / 8], the lower bits first."""
    scales: ir.LazyTensor
    """float16 [O, K]; float32 where the checkpoint has bfloat16, which not every runtime reads."""
    zeros: ir.LazyTensor | None
    """uint8 [O · ⌈K · bits / 8⌉]; None for a symmetric grid."""

    def for_dequantize_linear(
        self,
    ) -> tuple[ir.LazyTensor, ir.LazyTensor, ir.LazyTensor | None]:
        """Return integers [I, O], scales [K, O] and zero-points [K, O] for DequantizeLinear.

        Integers are unsigned; a symmetric grid gives signed ones without zero-points, as TensorRT
        requires.
        """
        count = self.inputs // self.size
        zeros = self.zeros
        zero_point = 0 if zeros is not None else 1 << (self.bits - 1)
        dtype = BLOCK_TYPES[self.bits, zeros is None]

        def unpack(packed: ir.LazyTensor, columns: int) -> Tensor:
            rows = torch.from_numpy(np.array(packed.numpy())).view(self.outputs, -1)
            integers = unpack_bytes(rows, self.bits)[:, :columns].T.to(torch.int16)
            return (integers - zero_point).contiguous()

        def scales() -> Tensor:
            return torch.from_numpy(np.array(self.scales.numpy())).T

        integers = lazy_tensor(
            lambda: unpack(self.data, self.inputs), dtype, (self.inputs, self.outputs)
        )
        lazy_scales = lazy_tensor(scales, self.scales.dtype, (count, self.outputs))
        if zeros is None:
            return integers, lazy_scales, None
        lazy_zeros = lazy_tensor(lambda: unpack(zeros, count), dtype, (count, self.outputs))
        return integers, lazy_scales, lazy_zeros


@dataclass(frozen=True, slots=True)
class ExpertBlocks:
    """Matrices of all experts as integers in the layout of QMoE."""

    data: ir.LazyTensor
    """uint8 [E, O, I · bits / 8]."""
    scales: ir.LazyTensor
    """[E, O, I / block]."""
    zeros: ir.LazyTensor | None
    """uint8 [E, O, ⌈I / block · bits / 8⌉]."""


class CheckpointWeights:
    """Weights of one checkpoint, packed or not."""

    def __init__(
        self, folder: Path, tree: Mapping[str, Any], dtype: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        """Read the headers.

        Args:
            folder: the checkpoint.
            tree: its config.json.
            dtype: in which matrices are returned: float32 or float16.
        """
        self.dtype = dtype
        weights = read_weight_files(folder)
        self.tree = tree
        self.files = StoredTensors(weights, stored_names(tree, weights))
        self.packed_layer = lru_cache(_CACHED_LAYERS)(self._read_packed)
        """Packed layer by name; its integers, scales and zero-points are read in turn."""
        self.converted = lru_cache(_CACHED_FUSED)(self._read_converted)
        """Tensor of the class by name, which transformers makes of stored ones."""
        self._grid_of: Callable[[str], WeightGrid] | None = None
        if is_packed(tree):
            self.packing = PACKED_FORMATS[tree[QUANTIZATION_CONFIG]["quant_method"]]
            self._grid_of = self.packing.grids(tree[QUANTIZATION_CONFIG])

    @cached_property
    def expert_layers(self) -> dict[str, str]:
        """Linear layers of experts that are stored one by one, with their names in the files."""
        return stored_experts(self.tree, self.files)

    def stored_layer(self, name: str) -> str:
        """Return the name in the files of a linear layer, which may be one of a single expert."""
        is_stored = any(self.has(f"{name}.{s}") for s in ("weight", *_SCALE_SUFFIXES))
        return name if is_stored else self.expert_layers.get(name, name)

    def first_rows(self, name: str, index: int) -> Tensor:
        """Return what a tensor holds at an index of its first axis, [1, …]."""
        if not self.has(name):
            return self.converted(name)[index : index + 1]
        rows = self.files.rows(name, torch.tensor([index]))
        return rows.view(1, *self.shape(name)[1:])

    def _read_converted(self, name: str) -> Tensor:
        return converted_tensor(self.tree, self.files, name)

    def has(self, name: str) -> bool:
        """Return True if the checkpoint has a tensor of this name."""
        return name in self.files.entries

    def grid(self, linear: str) -> WeightGrid | None:
        """Return the grid of a linear layer; None if it is not packed."""
        if self._grid_of is None or self.has(f"{linear}.weight"):
            return None
        return self._grid_of(linear)

    def vector(self, name: str, offset: float = 0.0) -> Array:
        """Return a tensor in float32, with ``offset`` added."""
        return (self._float(name) + offset).numpy()

    def vectors(self, names: Sequence[str]) -> Array:
        """Return several vectors one after another, float32."""
        return np.concatenate([self.vector(name) for name in names])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self.files.dtype_and_shape(name)[1])

    def table(self, name: str, rows: slice = _ALL) -> ir.LazyTensor:
        """Return an embedding, or some of its rows, [V, hidden]."""
        count, width = self.shape(name)
        shape = (len(range(*rows.indices(count))), width)
        return lazy_tensor(lambda: self._float(name)[rows], self.dtype, shape)

    def transposed(
        self,
        names: Sequence[str],
        rows: Tensor | None = None,
        *,
        stored_transposed: bool = False,
    ) -> ir.LazyTensor:
        """Return the weights of linear layers that read one input, [I, O of all].

        Args:
            names: of the weights.
            rows: order of the outputs; None for that of the checkpoint.
            stored_transposed: True if the checkpoint holds them as [I, O].
        """
        step = -1 if stored_transposed else 1
        shapes = [self.shape(name)[::step] for name in names]
        shape = (shapes[0][1], sum(size[0] for size in shapes))

        def read() -> Tensor:
            matrices = [self._float(name) for name in names]
            joined = torch.cat([m.T if stored_transposed else m for m in matrices])
            return (joined if rows is None else joined[rows]).T

        return lazy_tensor(read, self.dtype, shape)

    def blocks(
        self,
        linears: Sequence[str],
        shape: tuple[int, int],
        rows: Tensor | None = None,
        size: int = 0,
    ) -> BlockMatrix:
        """Return packed linear layers that read one input and share a grid, as one matrix.

        Integers, scales and zero-points are those of the checkpoint.

        Args:
            linears: names of the layers.
            shape: (outputs of all, inputs).
            rows: order of the outputs; None for that of the checkpoint.
            size: inputs of a block, a divisor of the largest possible one; 0 for that one.
        """
        grid = self.grid(linears[0])
        assert grid is not None  # noqa: S101 - callers have looked
        outputs, inputs = shape
        size, bits = size or block_size(grid, inputs), grid.bits
        repeats, count = grid.width(inputs) // size, inputs // size
        stored_dtype = self._scale_dtype(linears[0])
        dtype = torch.float16 if stored_dtype == torch.float16 else torch.float32

        def data(layer: PackedLinear) -> Tensor:
            return pack_bytes(layer.integers_OI.view(-1, count, size), bits)

        def scales(layer: PackedLinear) -> Tensor:
            return layer.scales_OG.repeat_interleave(repeats, dim=1).to(dtype)

        def zeros(layer: PackedLinear) -> Tensor:
            return pack_bytes(layer.zeros_OG.repeat_interleave(repeats, dim=1), bits)

        def joined(part: Callable[[PackedLinear], Tensor]) -> Callable[[], Tensor]:
            def read() -> Tensor:
                parts = torch.cat([part(self.packed_layer(name)) for name in linears])
                return parts if rows is None else parts[rows]

            return read

        zeros_shape = (outputs * -(-count * bits // 8),)
        return BlockMatrix(
            outputs,
            inputs,
            bits,
            size,
            data=lazy_tensor(joined(data), ir.DataType.UINT8, (outputs, count, size * bits // 8)),
            scales=lazy_tensor(joined(scales), _SCALE_TYPES[dtype], (outputs, count)),
            zeros=None
            if grid.symmetric
            else lazy_tensor(joined(zeros), ir.DataType.UINT8, zeros_shape),
        )

    def int8_table(self, name: str, size: int) -> BlockMatrix:
        """Return an embedding rounded to 8 bits, symmetric, in blocks of ``size``."""
        rows, width = self.files.dtype_and_shape(name)[1]
        count = width // size

        def scales() -> Tensor:
            peaks = self._float(name).view(rows, count, size).abs().amax(dim=2)
            return (peaks / _INT8_MAX).clamp(min=torch.finfo(torch.float16).tiny).half()

        def data() -> Tensor:
            blocks = self._float(name).view(rows, count, size)
            steps = (blocks / scales().float().unsqueeze(2)).round_()
            return steps.clamp_(-_INT8_MAX, _INT8_MAX).add_(_INT8_ZERO_POINT).to(torch.uint8)

        return BlockMatrix(
            rows,
            width,
            8,
            size,
            data=lazy_tensor(data, ir.DataType.UINT8, (rows, count, size)),
            scales=lazy_tensor(scales, ir.DataType.FLOAT16, (rows, count)),
            zeros=None,
        )

    def outputs(self, linear: str, *, stored_transposed: bool = False) -> int:
        """Return the outputs of a linear layer, packed or not, from the headers.

        Args:
            linear: name of the layer.
            stored_transposed: True if the checkpoint holds a float matrix as [I, O].
        """
        if self.grid(linear) is None:
            return self.shape(f"{linear}.weight")[1 if stored_transposed else 0]
        suffix = self.packing.shape_suffix
        name = f"{linear}.{suffix}"
        is_description = suffix == "weight_shape"
        values = self.files.read(name).flatten().tolist() if is_description else self.shape(name)
        return self.packing.outputs_and_inputs((int(values[0]), int(values[1])))[0]

    def _scale_dtype(self, linear: str) -> torch.dtype:
        names = (f"{linear}.{suffix}" for suffix in _SCALE_SUFFIXES)
        [name] = [name for name in names if self.has(name)]
        return self.files.dtype_and_shape(name)[0]

    def _read_packed(self, linear: str) -> PackedLinear:
        grid = self.grid(linear)
        assert grid is not None  # noqa: S101 - callers have looked
        names = (f"{linear}.{suffix}" for suffix in self.packing.suffixes)
        tensors = {
            name.rpartition(".")[2]: self.files.read(name) for name in names if self.has(name)
        }
        return self.packing.linear(tensors, grid)

    def _float(self, name: str) -> Tensor:
        return self.files.read(name).float()


def lazy_tensor(
    read: Callable[[], Tensor], dtype: ir.DataType, shape: Sequence[int]
) -> ir.LazyTensor:
    """Return a tensor that is read when it is serialized."""

    def materialize() -> ir.TensorProtocol:
        value = read().contiguous()
        assert math.prod(shape) == value.numel()  # noqa: S101
        array = value.numpy().reshape(tuple(shape))
        return ir.tensor(array.astype(dtype.numpy()), dtype=dtype)

    return ir.LazyTensor(materialize, dtype=dtype, shape=ir.Shape(shape))
