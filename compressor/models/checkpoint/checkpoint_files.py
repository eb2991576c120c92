"""Tensors of a checkpoint's safetensors files, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from compressor.artifacts.errors_from_os import reading
from compressor.models.checkpoint.safetensors_files import TensorEntry, read_header

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Safetensors' name of a dtype to the dtype."""

_CHUNK_VALUES = 1 << 22


class CheckpointFiles:
    """The tensors of all safetensors files of a folder.

    Files are read, not mapped: mapped pages would count as memory of the process.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            ModelError: a file is truncated or damaged.
        """
        self.folder = folder
        self.entries = {
            entry.name: (file, entry)
            for file in sorted(folder.glob("*.safetensors"))
            for entry in read_header(file)
        }
        """Tensor name to its file and its location there."""

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors by name, in the dtype of the files."""
        for name in names:
            yield name, _read_tensor(*self.entries[name])

    def rows(self, name: str, rows_R: Tensor) -> Tensor:
        """Return the rows of a matrix with the indices ``rows_R``, in the dtype of the file."""
        file, entry = self.entries[name]
        row_bytes = (entry.end - entry.start) // entry.shape[0]
        content = bytearray(row_bytes * len(rows_R))
        with reading(file), file.open("rb") as handle:
            for number, row in enumerate(rows_R.tolist()):
                handle.seek(entry.start + row * row_bytes)
                handle.readinto(memoryview(content)[number * row_bytes : (number + 1) * row_bytes])
        return torch.frombuffer(content, dtype=DTYPES[entry.dtype]).view(len(rows_R), -1)

    def dtype_and_shape(self, name: str) -> tuple[torch.dtype, torch.Size]:
        """Return the dtype and shape of a tensor, from the header."""
        _, entry = self.entries[name]
        return DTYPES[entry.dtype], torch.Size(entry.shape)

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield the values of a tensor in order, at most 2²² at a time."""
        file, entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        with reading(file), file.open("rb") as handle:
            handle.seek(entry.start)
            remaining = entry.end - entry.start
            while remaining:
                content = bytearray(handle.read(min(remaining, _CHUNK_VALUES * dtype.itemsize)))
                remaining -= len(content)
                yield torch.frombuffer(content, dtype=dtype)

    def names_below(self, prefix: str) -> list[str]:
        """Return the names of the tensors of a module."""
        return [name for name in self.entries if name.startswith(f"{prefix}.")]


def _read_tensor(file: Path, entry: TensorEntry) -> Tensor:
    content = bytearray(entry.end - entry.start)
    with reading(file), file.open("rb") as handle:
        handle.seek(entry.start)
        handle.readinto(content)
    dtype = DTYPES[entry.dtype]
    if not content:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(entry.shape)
