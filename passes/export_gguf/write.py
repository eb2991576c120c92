"""Writing of a GGUF file, and the comparison of every tensor in it with the checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFReader, GGUFType, GGUFWriter

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ParityError
from compressor.models.adapters.base import BASE_KEY, model_digest
from passes.export_gguf.file_tensors import FileTensor
from passes.export_gguf.metadata import Hyperparameters, write_hyperparameters
from passes.export_gguf.projector import ARCHITECTURE, Projector, write_projector_keys
from passes.export_gguf.tokenizer import Vocabulary, write_vocabulary

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
Progress = Callable[[int, int], None]
"""Takes the tensors that are done, and all."""


@dataclass(frozen=True, slots=True)
class GgufContent:
    """Everything that a file holds."""

    name: str | None
    model: Hyperparameters
    tensors: Sequence[FileTensor]
    vocabulary: Vocabulary
    folder: Path
    """The checkpoint, whose tokenizer files name the special tokens."""

    @property
    def main_type(self) -> str:
        """Type of most weights."""
        return _main_type(self.tensors)

    @property
    def default_name(self) -> str:
        """Architecture and number of parameters.

        llama.cpp strips spaces after the special tokens of Phi-3 in files of that name, and fails
        to open one whose vocabulary lacks them, such as Phi-4's.
        """
        kind = self.model.model_type
        if kind == "phi3" and not self.vocabulary.has_phi3_tokens:
            kind = "phi"
        return f"{kind} {self.size_label}"

    @property
    def size_label(self) -> str:
        """Number of parameters, such as ``135M``."""
        count = sum(math.prod(tensor.shape) for tensor in self.tensors if tensor.source)
        label: str = gguf.size_label(count, count, 0, 0)
        return label


@dataclass(frozen=True, slots=True)
class ProjectorContent:
    """Everything that the file of a vision tower holds."""

    name: str
    projector: Projector
    tensors: Sequence[FileTensor]
    folder: Path
    """The checkpoint."""


def _main_type(tensors: Sequence[FileTensor]) -> str:
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.type.name] += math.prod(tensor.shape)
    return weights.most_common(1)[0][0]


def write_file(content: GgufContent, file: Path, progress: Progress) -> None:
    """Write a GGUF file, one tensor in memory at a time.

    Raises:
        NumericalError: values exceed the range of their type.
        StorageError: the disk is full, or the file cannot be written.
    """
    with writing(file):
        writer = GGUFWriter(path=None, arch=content.model.architecture.name)
        writer.add_type(GGUFType.MODEL)
        writer.add_name(content.name or content.default_name)
        writer.add_size_label(content.size_label)
        writer.add_string(BASE_KEY, model_digest(content.folder))
        write_hyperparameters(writer, content.model)
        writer.add_file_type(_FILE_TYPES[content.main_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_vocabulary(writer, content.vocabulary, content.folder)
        _write_tensors(writer, content.tensors, file, progress)


def write_projector(content: ProjectorContent, file: Path, progress: Progress) -> None:
    """Write the GGUF file of a vision tower, one tensor in memory at a time.

    Raises:
        NumericalError: values exceed the range of their type.
        StorageError: the disk is full, or the file cannot be written.
    """
    with writing(file):
        writer = GGUFWriter(path=None, arch=ARCHITECTURE)
        writer.add_type(GGUFType.MMPROJ)
        writer.add_name(content.name)
        writer.add_string(BASE_KEY, model_digest(content.folder))
        writer.add_file_type(_FILE_TYPES[_main_type(content.tensors)])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_projector_keys(writer, content.projector)
        _write_tensors(writer, content.tensors, file, progress)


def _write_tensors(
    writer: GGUFWriter, tensors: Sequence[FileTensor], file: Path, progress: Progress
) -> None:
    for tensor in tensors:
        _add_info(writer, tensor)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, tensor in enumerate(tensors):
        progress(number, len(tensors))
        writer.write_tensor_data(np.ascontiguousarray(tensor.read()))
    writer.close()


def _add_info(writer: GGUFWriter, tensor: FileTensor) -> None:
    is_float32 = tensor.type is gguf.GGMLQuantizationType.F32
    shape = tensor.shape if is_float32 else (*tensor.shape[:-1], tensor.row_bytes)
    dtype = np.dtype(np.float32 if is_float32 else np.uint8)
    writer.add_tensor_info(tensor.name, shape, dtype, tensor.size_bytes, raw_dtype=tensor.type)


def compare_file(file: Path, tensors: Sequence[FileTensor], progress: Progress) -> dict[str, Any]:
    """Dequantize every tensor of a file and compare it with the checkpoint's.

    Returns:
        Tensors, bytes and weights by type, and the relative error of those that were rounded.

    Raises:
        ParityError: a tensor is missing, or holds other numbers.
    """
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    types: dict[str, dict[str, int]] = {}
    errors: dict[str, float] = {}
    for number, tensor in enumerate(tensors):
        progress(number, len(tensors))
        if tensor.name not in stored:
            raise ParityError(f"{file.name} has no tensor {tensor.name}")
        read = stored[tensor.name]
        values = gguf.quants.dequantize(read.data, read.tensor_type).reshape(tensor.shape)
        expected = tensor.expected()
        difference = torch.from_numpy(np.array(values)) - expected
        if tensor.is_exact and bool(difference.any()):
            raise ParityError(
                f"{file.name}: {tensor.name} differs from {tensor.source} by up to "
                f"{float(difference.abs().max()):.3g}"
            )
        if not tensor.is_exact:
            errors[tensor.source] = float(difference.norm() / expected.norm().clamp(min=1e-30))
        entry = types.setdefault(tensor.type.name, {"tensors": 0, "weights": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["weights"] += math.prod(tensor.shape)
        entry["bytes"] += tensor.size_bytes
    return {"types": types, "rounded": errors}
