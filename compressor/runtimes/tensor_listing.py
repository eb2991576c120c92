"""Tensors of a model file, listed from headers without reading their values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compressor.models.checkpoint.safetensors_files import (
    TORCH_DTYPES,
    TensorEntry,
    read_header,
)


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
        ListedTensor(entry.name, TORCH_DTYPES.get(entry.dtype, entry.dtype), entry.shape)
        for entry in entries
    )


def safetensors_tensors(files: Iterable[Path]) -> tuple[ListedTensor, ...]:
    """Return the tensors of safetensors files.

    Raises:
        ModelError: a file is truncated, damaged, or not a safetensors file.
    """
    return listed(entry for file in files for entry in read_header(file))
