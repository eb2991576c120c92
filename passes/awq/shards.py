"""Shards of a packed checkpoint, each written completely, read back and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from compressor.artifacts.errors_from_os import writing
from compressor.models.checkpoint.layout import INDEX
from compressor.models.checkpoint.stored_tensors import DTYPES
from compressor.models.families.transformers.conv1d import transpose
from compressor.models.families.transformers.file_names import FileNames, FilePart
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.packed_file import METADATA, cast_float, write_packed_shard
from passes.awq.settings import QuantizationSettings

_SHARD_BYTES = 1 << 30
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardWriter:
    """Writes the shards of a streamed checkpoint."""

    def __init__(
        self,
        checkpoint: StreamedCheckpoint,
        folder: Path,
        settings: QuantizationSettings,
        names: FileNames | None,
    ) -> None:
        """Take what all shards share.

        Args:
            checkpoint: the parent.
            folder: the folder to write to.
            settings: format and dtypes.
            names: names in the files; None for those of the class.
        """
        self.checkpoint, self.folder, self.settings = checkpoint, folder, settings
        self._names = names

    def stored_layers(self, layer: str) -> list[str]:
        """Return the names of the packed layers in the files that hold a linear layer."""
        is_tied = self.checkpoint.is_stored_elsewhere(f"{layer}.weight")
        if self._names is None or is_tied:
            return [layer]
        return [part.name for part in self._names.packed_parts(layer)]

    def write(
        self,
        file: Path,
        prefix: str,
        floats: Mapping[str, Tensor],
        packed: Mapping[str, PackedLinear],
    ) -> None:
        """Write a shard; see ``write_packed_shard``."""
        floats = transpose(floats, self.checkpoint.transposed, prefix)
        if self._names is not None:
            floats = self._names.tensors({f"{prefix}{k}": value for k, value in floats.items()})
            packed = self._names.packed({f"{prefix}{k}": layer for k, layer in packed.items()})
            prefix = ""
        write_packed_shard(file, prefix, floats, packed, self.settings)

    def write_others(self, names: Iterable[str]) -> None:
        """Write tensors that are not packed into shards of about 1 GiB.

        A few megabytes are in memory at a time.
        """
        dtype = self.settings.float_dtype
        shards: list[list[str]] = []
        free_bytes = 0
        for name in names:
            size = self.checkpoint.dtype_and_shape(name)[1].numel() * dtype.itemsize
            if not shards or size > free_bytes:
                shards.append([])
                free_bytes = _SHARD_BYTES
            shards[-1].append(name)
            free_bytes -= size
        for number, shard in enumerate(shards):
            file = self.folder / f"others-{number:05d}.safetensors"
            _write_in_pieces(file, [part for name in shard for part in self._parts(name)], dtype)

    def _parts(self, name: str) -> Iterator[_Pieces]:
        """Yield the stored tensors that hold a tensor of the class."""
        dtype, shape = self.checkpoint.dtype_and_shape(name)
        parts = [FilePart(name)] if self._names is None else self._names.parts(name)
        for part in parts:
            if part.rows is None:
                read = partial(self.checkpoint.chunks, name)
                yield _Pieces(part.name, dtype, shape, read)
            else:
                rows = part.rows
                part_shape = torch.Size([len(rows), *shape[1:]])
                read_rows = partial(self._rows, name, rows)
                yield _Pieces(part.name, dtype, part_shape, read_rows)

    def _rows(self, name: str, rows: Tensor) -> Iterator[Tensor]:
        yield self.checkpoint.rows(name, rows).flatten()


@dataclass(frozen=True, slots=True)
class _Pieces:
    """A tensor that is written in pieces."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    read: Callable[[], Iterator[Tensor]]
    """Returns the values in order."""


def _write_in_pieces(file: Path, tensors: Sequence[_Pieces], dtype: torch.dtype) -> None:
    """Write a safetensors file: header length, JSON header with offsets, and the raw tensors."""
    header: dict[str, Any] = {"__metadata__": METADATA}
    end = 0
    for tensor in tensors:
        written_dtype = dtype if tensor.dtype.is_floating_point else tensor.dtype
        start, end = end, end + tensor.shape.numel() * written_dtype.itemsize
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[written_dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(file):
        part = file.with_suffix(".part")
        with part.open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                for piece in tensor.read():
                    values = cast_float(tensor.name, piece, dtype)
                    handle.write(values.view(torch.uint8).numpy().tobytes())
        part.replace(file)


def assemble_checkpoint(shards: list[Path], out: Path) -> None:
    """Copy complete shards into a checkpoint under their final names, and write its index."""
    weight_map: dict[str, str] = {}
    total_size = 0
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with safetensors.safe_open(file, framework="pt") as shard:
                weight_map |= dict.fromkeys(shard.keys(), name)
            total_size += file.stat().st_size
            shutil.copyfile(file, out / name)
            (out / name).chmod(0o644)
        index = {
            "metadata": {"total_size": total_size},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
