"""Tensors of a language model in a GGUF file: name, type and order of rows of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import gguf
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from compressor.errors import RequirementError
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.runtimes.llamacpp.row_order import rows_in_file
from passes.export_gguf.architectures import VISION
from passes.export_gguf.block_types import BLOCK
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.file_tensors import (
    FLOAT_TYPES,
    FileTensor,
    FloatSource,
    float_tensor,
    packed_tensor,
    stated_tensor,
)
from passes.export_gguf.metadata import Hyperparameters, hyperparameter_tensors

_TABLES = ("embed_tokens.weight", "lm_head.weight")
_INSIDE = ".language_model."
"""Part of the names of a vision-language model's decoder, which llama.cpp's names lack."""


class TensorPlan:
    """The tensors of a checkpoint's decoder, by their names in the file."""

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
        tensors = [stated_tensor(*stated) for stated in hyperparameter_tensors(self._model)]
        layers = {} if self._packed is None else self._packed.layers
        unknown = []
        for source in self._sources():
            name = self._map.get_name(
                source.replace(_INSIDE, "."), try_suffixes=(".weight", ".bias")
            )
            if name is None:
                unknown.append(source)
            elif self._packed is not None and source.removesuffix(".weight") in layers:
                layer = source.removesuffix(".weight")
                tensors.append(packed_tensor(name, layer, self._packed, self._row_order(layer)))
            else:
                tensors.append(self._float_tensor(name, source))
        refuse_unknown(self._model.architecture.name, unknown)
        return tensors

    def _sources(self) -> Iterator[str]:
        names = sorted(self._files.entries) if self._packed is None else self._packed.names
        tied = self._model.fields.get("tie_word_embeddings")
        has_projector = self._model.architecture.projector is not None
        for source in names:
            is_alias = tied and source == "lm_head.weight"
            if not is_alias and not (has_projector and source.startswith(VISION)):
                yield source

    def _float_tensor(self, name: str, source: str) -> FileTensor:
        dtype, shape = self._files.dtype_and_shape(source)
        is_norm = len(shape) == 1 and source.endswith("norm.weight")
        offset = self._model.architecture.norm_offset if is_norm else 0.0
        order = self._row_order(source.rpartition(".")[0])

        def read_values() -> Tensor:
            values = self._files.read(source)
            if order is not None:
                values = values[order]
            return values.float() + offset if offset else values

        target = self._type_of(source, dtype, shape)
        return float_tensor(name, FloatSource(source, tuple(shape), read_values), target)

    def _type_of(self, source: str, dtype: torch.dtype, shape: torch.Size) -> GGMLQuantizationType:
        if len(shape) == 1:
            return GGMLQuantizationType.F32
        stated = self._config.dtype
        if source.endswith(_TABLES):
            if self._config.tables == "q8_0":
                return GGMLQuantizationType.Q8_0
            stated = self._config.tables or stated
        return FLOAT_TYPES[dtype if stated is None else getattr(torch, stated)]

    def _row_order(self, layer: str) -> Tensor | None:
        """Return the order of a projection's rows; None if they stay as they are."""
        projection = layer.rpartition(".")[2]
        if projection not in {"q_proj", "k_proj"}:
            return None
        model = self._model
        heads = model.heads if projection == "q_proj" else model.key_heads
        order = rows_in_file(
            model.architecture.name,
            heads,
            heads * model.head_width,
            model.rotary_width if model.position_sections else None,
        )
        return None if order is None else torch.from_numpy(order)


def refuse_unknown(architecture: str, unknown: Sequence[str]) -> None:
    """Raise a ``RequirementError`` that names all tensors without a place, if there are any."""
    if unknown:
        raise RequirementError(
            f"llama.cpp's {architecture} has no tensors for: " + ", ".join(unknown),
            remedy="export the model with `export-onnx`, which computes them",
        )


def width_problems(files: StoredTensors) -> Iterator[str]:
    """Yield tables whose rows cannot be divided into blocks."""
    for name in files.entries:
        _, shape = files.dtype_and_shape(name)
        if name.endswith(_TABLES) and shape[-1] % BLOCK:
            yield f"{name}: rows of {shape[-1]} values"
