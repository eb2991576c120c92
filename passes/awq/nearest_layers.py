"""Linear layers that are rounded to nearest, uncalibrated: the head, and towers without images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.linear_layers import find_linears, get_linear
from passes.awq.linear_shapes import FittedGrid
from passes.awq.packed_file import tensors_beside
from passes.awq.shards import ShardWriter
from passes.common.weight_rounding.grids import ScaleFormat, round_to_nearest, search_grids
from passes.common.weight_rounding.rounding import pack_values

_HEAD_ROWS = 1 << 12
"""Rows of the head that are rounded together."""


def find_tower_linears(checkpoint: StreamedCheckpoint) -> dict[str, list[str]]:
    """Return the parts of the towers, each with the names of its linear layers."""
    linears = {
        part: list(find_linears(checkpoint.module.get_submodule(part)))
        for part in checkpoint.tower_parts()
    }
    return {part: names for part, names in linears.items() if names}


@torch.inference_mode()
def pack_towers(
    checkpoint: StreamedCheckpoint,
    grids: Mapping[str, FittedGrid],
    writer: ShardWriter,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Write a shard for each part of the towers that has linear layers.

    Shards that exist are kept, so that a killed run resumes.

    Args:
        checkpoint: the parent.
        grids: grid of each linear layer of the towers.
        writer: writes shards.
        progress: called with the number of parts done and of all parts.

    Returns:
        The files of the shards.
    """
    files, parts = [], find_tower_linears(checkpoint)
    for number, (part, linears) in enumerate(parts.items()):
        files.append(tower_file(writer, number))
        if not files[-1].is_file():
            module = checkpoint.load(part)
            packed = {
                name: _pack_nearest(
                    get_linear(module, name).weight, grid, writer.settings.scale_format
                )
                for name in linears
                if (grid := grids[full_name(part, name)].grid) is not None
            }
            write_tower_part(writer, number, part, packed, module.state_dict())
            checkpoint.unload(part)
        progress(number + 1, len(parts))
    return files


def write_tower_part(
    writer: ShardWriter,
    number: int,
    part: str,
    packed: Mapping[str, PackedLinear],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write the shard of a part of the towers.

    Args:
        writer: writes shards.
        number: of the part.
        part: its name.
        packed: packed layers by their name in the part.
        tensors: all tensors of the part by their name in it.
    """
    full = {full_name(part, name): layer for name, layer in packed.items()}
    floats = tensors_beside(full, {f"{part}.{name}": value for name, value in tensors.items()})
    writer.write(tower_file(writer, number), "", floats, full)


def tower_file(writer: ShardWriter, number: int) -> Path:
    """Return the file of the shard of a part of the towers."""
    return writer.folder / f"vision-{number:05d}.safetensors"


def full_name(part: str, name: str) -> str:
    """Return the name in the model of a layer in a part, which may be the part itself."""
    return f"{part}.{name}" if name else part


@torch.inference_mode()
def pack_head(
    checkpoint: StreamedCheckpoint, head: str, grid: WeightGrid, writer: ShardWriter
) -> Path:
    """Write a shard for the head, a range of rows in memory at a time; an existing one is kept."""
    file, name = writer.folder / "head.safetensors", f"{head}.weight"
    if not file.is_file():
        _, shape = checkpoint.dtype_and_shape(name)
        parts = [
            _pack_nearest(checkpoint.rows(name, rows).float(), grid, writer.settings.scale_format)
            for rows in torch.split(torch.arange(shape[0]), _HEAD_ROWS)
        ]
        writer.write(file, "", {}, {head: PackedLinear.concatenate(parts)})
    return file


def _pack_nearest(weight_OI: Tensor, grid: WeightGrid, scale_format: ScaleFormat) -> PackedLinear:
    """Round weights to nearest on the range with the least squared error of the weights."""
    weight_IO = weight_OI.T.contiguous()
    grids = search_grids(weight_IO, torch.ones(len(weight_IO)), grid, scale_format)
    return pack_values(round_to_nearest(weight_IO, grids), grids)
