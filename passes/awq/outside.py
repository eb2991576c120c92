"""Linear layers outside the decoder's, a vision tower's and the head, rounded to the nearest: no samples decide about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.models.families.transformers.layouts import HEAD
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.models.quantized.description import WeightGrid
from compressor.models.quantized.packed_formats import Format
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import packed_of
from passes.awq.shards import write_packed

_ROWS = 1 << 12
"""Of the head, rounded at a time."""


def vision_linears(checkpoint: StreamedCheckpoint) -> dict[str, dict[str, tuple[int, int]]]:
    """Part of the tower to its linear layers by their names in it, with outputs and inputs."""
    found = {}
    for part in checkpoint.vision_parts():
        module = checkpoint.module.get_submodule(part)
        linears = {name: one for name, one in module.named_modules() if isinstance(one, nn.Linear)}
        if linears:
            found[part] = {
                name: (one.out_features, one.in_features) for name, one in linears.items()
            }
    return found


@torch.inference_mode()
def pack_vision(
    checkpoint: StreamedCheckpoint,
    grid: WeightGrid,
    kind: Format,
    scales: torch.dtype,
    other: torch.dtype,
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """A shard for each part of the tower that has linear layers; those that are there already are left as they are.

    Args:
        checkpoint: the parent.
        grid: of all its linear layers.
        kind: how they are stored.
        scales: their dtype.
        other: of all else.
        folder: where to.
        progress: parts done, and all.
    """
    files, parts = [], vision_linears(checkpoint)
    for number, (part, linears) in enumerate(parts.items()):
        files.append(folder / f"vision-{number:05d}.safetensors")
        if not files[-1].is_file():
            module = checkpoint.load(part)
            packed = {
                name: _nearest(module.get_parameter(f"{name}.weight"), grid, scales)
                for name in linears
            }
            others = {
                key: value
                for key, value in module.state_dict().items()
                if key.removesuffix(".weight") not in packed
            }
            write_packed(files[-1], f"{part}.", others, other, packed, kind)
            checkpoint.unload(part)
        progress(number + 1, len(parts))
    return files


@torch.inference_mode()
def pack_head(
    checkpoint: StreamedCheckpoint,
    grid: WeightGrid,
    kind: Format,
    scales: torch.dtype,
    folder: Path,
) -> Path:
    """A shard for the head, some of its rows in memory at a time; one that is there already is left as it is."""
    file, name = folder / "head.safetensors", f"{HEAD}.weight"
    if not file.is_file():
        rows = torch.split(torch.arange(checkpoint.kind(name)[1][0]), _ROWS)
        parts = [_nearest(checkpoint.rows(name, some).float(), grid, scales) for some in rows]
        write_packed(file, "", {}, scales, {HEAD: PackedLinear.joined(parts)}, kind)
    return file


def _nearest(weight_OI: Tensor, grid: WeightGrid, dtype: torch.dtype) -> PackedLinear:
    weight_IO = weight_OI.T.contiguous()
    scale_GO, zero_GO = group_grids(weight_IO, torch.ones(len(weight_IO)), grid, dtype)
    return packed_of(
        nearest(weight_IO, scale_GO, zero_GO, grid.highest), scale_GO, zero_GO, grid, dtype
    )
