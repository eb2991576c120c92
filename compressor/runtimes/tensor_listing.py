"""Tensors of a model file, listed from headers without reading their values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compressor.models.checkpoint.safetensors_files import TensorEntry, read_header

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Safetensors' name of a dtype to torch's."""


@dataclass(frozen=True, slots=True)
class ListedTensor:
    """One tensor of a model file."""

    name: str
    dtype: str
    """The name in torch, such as ``bfloat16``; for GGUF its own, such as ``Q4_K``."""
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def listed(entries: Iterable[TensorEntry]) -> tuple[ListedTensor, ...]:
    """Return entries of safetensors headers as listed tensors."""
    return tuple(
        ListedTensor(entry.name, _SAFETENSORS_DTYPES.get(entry.dtype, entry.dtype), entry.shape)
        for entry in entries
    )


def safetensors_tensors(files: Iterable[Path]) -> tuple[ListedTensor, ...]:
    """Return the tensors of safetensors files.

    Raises:
        ModelError: a file is truncated, damaged, or not a safetensors file.
    """
    return listed(entry for file in files for entry in read_header(file))
