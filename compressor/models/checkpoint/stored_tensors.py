"""Tensors of a model folder's weight files, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.foreign_files.opening import open_file
from compressor.models.checkpoint.safetensors_files import TORCH_DTYPES, open_tensors
from compressor.models.checkpoint.weight_files import StoredTensor, WeightFiles

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, torch_name) for name, torch_name in TORCH_DTYPES.items()
}
"""Name of a dtype in safetensors to the dtype."""

_CHUNK_VALUES = 1 << 22


class StoredTensors:
    """The tensors of a folder's weight files, by the names that they have in their class.

    Files are read, not mapped, except by ``mapped``: mapped pages count as memory of the process.
    """

    def __init__(self, weights: WeightFiles, names: Mapping[str, str] | None = None) -> None:
        """Select tensors.

        Args:
            weights: the weight files.
            names: name in the class to name in the files; by default all names as they are.

        Raises:
            ModelError: the files cannot be read, or a dtype is not known.
        """
        self.folder = weights.checked().folder
        if names is None:
            names = {name: name for name in weights.tensors}
        self.entries = {name: weights.tensors[stored] for name, stored in names.items()}
        """Tensor name to its location."""
        unknown = {tensor.entry.dtype for tensor in self.entries.values()} - DTYPES.keys()
        if unknown:
            raise ModelError(
                f"{self.folder}: tensors are stored as {', '.join(sorted(unknown))}, which cannot "
                "be read",
                remedy="save the checkpoint in float32, float16 or bfloat16",
            )

    def read(self, name: str) -> Tensor:
        """Return a tensor in the dtype of the file."""
        return _read_tensor(self.entries[name])

    def mapped(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors whose memory is that of the files, mapped copy-on-write."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.entries[name].file, []).append(name)
        for file, names_in_file in by_file.items():
            with open_tensors(file) as handle:
                for name in names_in_file:
                    yield name, handle.get_tensor(self.entries[name].entry.name)

    def rows(self, name: str, rows_R: Tensor) -> Tensor:
        """Return the rows of a matrix with the indices ``rows_R``, in the dtype of the file.

        Raises:
            IndexError: a row is not in the matrix; what lies there is another tensor.
        """
        file, entry = self.entries[name].file, self.entries[name].entry
        if len(rows_R) and not 0 <= int(rows_R.min()) <= int(rows_R.max()) < entry.shape[0]:
            raise IndexError(f"{name} has {entry.shape[0]} rows")
        row_bytes = (entry.end - entry.start) // entry.shape[0]
        content = bytearray(row_bytes * len(rows_R))
        with open_file(file, ModelError) as handle:
            for number, row in enumerate(rows_R.tolist()):
                handle.seek(entry.start + row * row_bytes)
                handle.readinto(memoryview(content)[number * row_bytes : (number + 1) * row_bytes])
        return torch.frombuffer(content, dtype=DTYPES[entry.dtype]).view(len(rows_R), -1)

    def dtype_and_shape(self, name: str) -> tuple[torch.dtype, torch.Size]:
        """Return the dtype and shape of a tensor, from the header."""
        entry = self.entries[name].entry
        return DTYPES[entry.dtype], torch.Size(entry.shape)

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield the values of a tensor in order, at most 2²² at a time."""
        file, entry = self.entries[name].file, self.entries[name].entry
        dtype = DTYPES[entry.dtype]
        with open_file(file, ModelError) as handle:
            handle.seek(entry.start)
            remaining = entry.end - entry.start
            while remaining:
                content = bytearray(handle.read(min(remaining, _CHUNK_VALUES * dtype.itemsize)))
                remaining -= len(content)
                yield torch.frombuffer(content, dtype=dtype)


def _read_tensor(tensor: StoredTensor) -> Tensor:
    file, entry = tensor.file, tensor.entry
    content = bytearray(entry.end - entry.start)
    with open_file(file, ModelError) as handle:
        handle.seek(entry.start)
        handle.readinto(content)
    dtype = DTYPES[entry.dtype]
    if not content:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(entry.shape)
