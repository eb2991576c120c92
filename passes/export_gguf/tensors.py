"""Tensors of a GGUF file: name, type and content of each, read one at a time.

Shapes: O rows of a matrix, I values of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from compressor.errors import NumericalError, RequirementError
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.runtimes.llamacpp.row_order import has_paired_rows, paired_rows
from passes.export_gguf.block_types import BLOCK, BlockType, block_type
from passes.export_gguf.blocks import Array, blocks_of
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.metadata import Hyperparameters, hyperparameter_tensors

_ROWS = 4096
"""Rows of a table that are rounded together."""
_TABLES = ("embed_tokens.weight", "lm_head.weight")
_FLOAT_TYPES = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
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
    is_exact: bool
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
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows * self.row_bytes


class TensorPlan:
    """The tensors of a checkpoint, by their names in the file."""

    def __init__(
        self,
        config: ExportGgufConfig,
        model: Hyperparameters,
        files: StoredTensors,
        packed: PackedTensors | None,
    ) -> None:
        """Prepare the names; no tensor is read.

        Args:
            config: of the pass.
            model: the hyperparameters.
            files: stored tensors by their names in the class.
            packed: the same as packed layers; None for a float checkpoint.
        """
        self._config, self._model, self._files, self._packed = config, model, files, packed
        architecture = next(
            key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == model.architecture.name
        )
        self._map = gguf.get_tensor_name_map(architecture, model.fields["num_hidden_layers"])

    def tensors(self) -> list[FileTensor]:
        """Return the tensors in the order of the checkpoint's names.

        Raises:
            RequirementError: the architecture has no place for a tensor; the message names all.
        """
        tensors = [
            FileTensor(
                name,
                "",
                GGMLQuantizationType.F32,
                values.shape,
                lambda values=values: values,  # type: ignore[misc]
                lambda values=values: torch.from_numpy(values),  # type: ignore[misc]
                is_exact=True,
            )
            for name, values in hyperparameter_tensors(self._model)
        ]
        layers = {} if self._packed is None else self._packed.layers
        names = sorted(self._files.entries) if self._packed is None else self._packed.names
        tied = self._model.fields.get("tie_word_embeddings")
        unknown = []
        for source in names:
            if tied and source == "lm_head.weight":
                continue
            name = self._map.get_name(source, try_suffixes=(".weight", ".bias"))
            if name is None:
                unknown.append(source)
            elif self._packed is not None and source.removesuffix(".weight") in layers:
                layer = source.removesuffix(".weight")
                tensors.append(self._packed_tensor(name, layer, self._packed))
            else:
                tensors.append(self._float_tensor(name, source))
        if unknown:
            raise RequirementError(
                f"llama.cpp's {self._model.architecture.name} has no tensors for: "
                + ", ".join(unknown),
                remedy="export the model with `export-onnx`, which computes them",
            )
        return tensors

    def _packed_tensor(self, name: str, layer: str, packed: PackedTensors) -> FileTensor:
        outputs, inputs = packed.size(layer)
        kind = block_type(packed.grid(layer))

        def read_layer() -> PackedLinear:
            linear, order = packed.layer(layer), self._row_order(layer)
            return linear if order is None else linear.take_rows(order)

        return FileTensor(
            name,
            f"{layer}.weight",
            GGMLQuantizationType[kind.name],
            (outputs, inputs),
            lambda: blocks_of(read_layer()),
            lambda: read_layer().dequantize(),
            is_exact=True,
        )

    def _float_tensor(self, name: str, source: str) -> FileTensor:
        dtype, shape = self._files.dtype_and_shape(source)
        target = self._type_of(source, dtype, shape)
        is_norm = len(shape) == 1 and source.endswith("norm.weight")

        def read_values() -> Tensor:
            values = self._files.read(source)
            order = self._row_order(source.rpartition(".")[0])
            if order is not None:
                values = values[order]
            offset = self._model.architecture.norm_offset if is_norm else 0.0
            return values.float() + offset if offset else values

        def read() -> Array:
            return _content(source, read_values(), target)

        def expected() -> Tensor:
            values = read_values()
            return values.float() if target not in _TORCH else values.to(_TORCH[target]).float()

        is_exact = target is not GGMLQuantizationType.Q8_0
        return FileTensor(name, source, target, tuple(shape), read, expected, is_exact)

    def _type_of(self, source: str, dtype: torch.dtype, shape: torch.Size) -> GGMLQuantizationType:
        if len(shape) == 1:
            return GGMLQuantizationType.F32
        stated = self._config.dtype
        if source.endswith(_TABLES):
            if self._config.tables == "q8_0":
                return GGMLQuantizationType.Q8_0
            stated = self._config.tables or stated
        return _FLOAT_TYPES[dtype if stated is None else getattr(torch, stated)]

    def _row_order(self, layer: str) -> Tensor | None:
        """Return the order of a projection's rows; None if they stay as they are."""
        projection = layer.rpartition(".")[2]
        if projection not in {"q_proj", "k_proj"}:
            return None
        if not has_paired_rows(self._model.architecture.name):
            return None
        heads = self._model.heads if projection == "q_proj" else self._model.key_heads
        return torch.from_numpy(paired_rows(heads, heads * self._model.head_width))


_TORCH = {kind: dtype for dtype, kind in _FLOAT_TYPES.items()}


def width_problems(files: StoredTensors) -> Iterator[str]:
    """Yield tables whose rows cannot be divided into blocks."""
    for name in files.entries:
        _, shape = files.dtype_and_shape(name)
        if name.endswith(_TABLES) and shape[-1] % BLOCK:
            yield f"{name}: rows of {shape[-1]} values"


def _content(name: str, values: Tensor, target: GGMLQuantizationType) -> Array:
    """Return float32 values, or the bytes of any other type as uint8.

    Raises:
        NumericalError: values exceed the range of the type.
    """
    if target is GGMLQuantizationType.Q8_0:
        return _rounded_to_8_bits(values)
    converted = values.to(_TORCH[target]).contiguous()
    if not bool(converted.isfinite().all()):
        raise NumericalError(
            f"{name} holds values up to {float(values.abs().max()):g}, too large for {target.name}",
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
