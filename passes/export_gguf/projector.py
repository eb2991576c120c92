"""A vision tower as a second GGUF file (`mmproj`), which llama.cpp loads beside the decoder.

Names, keys and types are those of llama.cpp's own converter. A kernel over two frames is two
kernels there, one for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.quantized.packed_checkpoint import PackedTensors
from passes.export_gguf.architectures import VISION, GgufArchitecture
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.file_tensors import (
    FLOAT_TYPES,
    FileTensor,
    FloatSource,
    float_tensor,
    packed_tensor,
)
from passes.export_gguf.tensors import refuse_unknown

ARCHITECTURE = "clip"
"""``general.architecture`` of such files."""
_MATRIX = 2
_POSITIONS = "position_embedding.weight"
"""Table that is interpolated in float32."""
_PATCHES = "patch_embed.proj.weight"
"""Kernel over frames, heights and widths."""


@dataclass(frozen=True, slots=True)
class Projector:
    """The vision tower of a checkpoint."""

    architecture: GgufArchitecture
    fields: Mapping[str, Any]
    """``vision_config`` with transformers' defaults."""
    outputs: int
    """Hidden width of the language model."""
    normalization: Mapping[str, Sequence[float]]
    """``image_mean`` and ``image_std`` of the image processor."""


def write_projector_keys(writer: GGUFWriter, projector: Projector) -> None:
    """Write the keys that llama.cpp computes with."""
    fields = projector.fields
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(str(projector.architecture.projector))
    writer.add_vision_projection_dim(projector.outputs)
    writer.add_vision_image_size(fields["image_size"])
    writer.add_vision_patch_size(fields["patch_size"])
    writer.add_vision_embedding_length(fields["hidden_size"])
    writer.add_vision_feed_forward_length(fields["intermediate_size"])
    writer.add_vision_block_count(fields["depth"])
    writer.add_vision_head_count(fields["num_heads"])
    writer.add_vision_attention_layernorm_eps(fields["rms_norm_eps"])
    writer.add_vision_use_silu(True)
    writer.add_vision_image_mean(list(projector.normalization["image_mean"]))
    writer.add_vision_image_std(list(projector.normalization["image_std"]))


class ProjectorPlan:
    """The tensors of a vision tower, by their names in the file."""

    def __init__(
        self,
        config: ExportGgufConfig,
        projector: Projector,
        files: StoredTensors,
        packed: PackedTensors | None,
    ) -> None:
        """Prepare the names; no tensor is read.

        Args:
            config: of the pass.
            projector: the tower.
            files: stored tensors of the checkpoint by their names in the class.
            packed: the same as packed layers; None for a float checkpoint.
        """
        self._config, self._projector, self._files, self._packed = config, projector, files, packed
        self._map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, projector.fields["depth"])

    def tensors(self) -> list[FileTensor]:
        """Return the tensors in the order of the checkpoint's names.

        Raises:
            RequirementError: llama.cpp has no place for a tensor; the message names all.
        """
        tensors: list[FileTensor] = []
        names = sorted(self._files.entries) if self._packed is None else self._packed.names
        layers = {} if self._packed is None else self._packed.layers
        unknown = []
        for source in names:
            if not source.startswith(VISION):
                continue
            name = self._map.get_name(
                source.removeprefix("model."), try_suffixes=(".weight", ".bias")
            )
            layer = source.removesuffix(".weight")
            if name is None:
                unknown.append(source)
            elif self._packed is not None and layer in layers:
                tensors.append(packed_tensor(name, layer, self._packed))
            else:
                tensors += self._float_tensors(name, source)
        refuse_unknown(str(self._projector.architecture.projector), unknown)
        return tensors

    def _float_tensors(self, name: str, source: str) -> Iterator[FileTensor]:
        dtype, shape = self._files.dtype_and_shape(source)
        target = self._type_of(source, dtype, len(shape))
        if not source.endswith(_PATCHES):
            values = FloatSource(source, tuple(shape), lambda: self._files.read(source))
            yield float_tensor(name, values, target)
            return
        size = (shape[0], shape[1], *shape[3:])
        for frame in range(shape[2]):

            def read_frame(frame: int = frame) -> Tensor:
                return self._files.read(source)[:, :, frame].contiguous()

            values = FloatSource(source, tuple(size), read_frame)
            yield float_tensor(f"{name}.{frame}" if frame else name, values, target)

    def _type_of(self, source: str, dtype: torch.dtype, rank: int) -> GGMLQuantizationType:
        stated = dtype if self._config.dtype is None else getattr(torch, self._config.dtype)
        if rank == _MATRIX and not source.endswith(_POSITIONS):
            return FLOAT_TYPES[stated]
        # llama.cpp convolves with kernels of float16 and float32 alone, and interpolates float32.
        is_kernel = rank > _MATRIX and stated is torch.float16
        return GGMLQuantizationType.F16 if is_kernel else GGMLQuantizationType.F32
