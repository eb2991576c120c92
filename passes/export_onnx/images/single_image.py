"""Positions and windows of one image's patches, as operators that do not depend on values.

transformers computes them from the grid on the host (``transformers.vision_utils``), in loops that
cannot be traced. For a single image they follow from the number of patches and the grid's width.

Shapes: P patches.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import vision_utils

_LENGTHS = "cu_seqlens"
_MORE_THAN_ALL = 1 << 30
"""End of a segment that contains any number of patches."""


def _one_segment() -> Tensor:
    """Return the bounds of a segment that every patch belongs to, a constant for tracing."""
    return torch.tensor([0, _MORE_THAN_ALL], dtype=torch.int32)


@dataclass
class SingleImage:
    """Replacements of the functions of ``transformers.vision_utils`` for an image of P patches.

    Windowed attention is computed over all patches, with a mask that separates the windows.
    """

    attention: tuple[nn.Module, ...] = ()
    """The parts of the tower with attention over segments."""
    patches: Any = 0
    """P, set before each call."""
    whole: Tensor = field(default_factory=_one_segment)
    """Stands for one segment of attention with all patches."""
    windowed: Tensor = field(default_factory=_one_segment)
    """Stands for the segments of all windows."""
    window_P: Tensor | None = None
    mask: Tensor | None = None
    """Mask of the attention that is being computed, [P, P]."""

    def positions(
        self, grid_thw: Tensor, spatial_merge_size: int, include_temporal: bool = False, **_: Any
    ) -> Tensor:
        """Return row and column of each patch, [P, 2]; behind the frame, 0, [P, 3]."""
        row, column = self._places(grid_thw, int(spatial_merge_size))
        columns = [torch.zeros_like(row), row, column] if include_temporal else [row, column]
        return torch.stack(columns, dim=-1)

    def lengths(self, *_: Any, **__: Any) -> Tensor:
        """Return the mark of a single segment."""
        return self.whole

    def attention_lengths(self, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return the mark of a single segment, and no longest one."""
        return self.whole, None

    def windows(
        self,
        grid_thw: Tensor,
        spatial_merge_size: int,
        window_size: int,
        patch_size: int,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Leave the patches in their order, and number the window of each."""
        side = window_size // spatial_merge_size // patch_size
        row, column = self._places(grid_thw, spatial_merge_size)
        row, column = row // spatial_merge_size // side, column // spatial_merge_size // side
        self.window_P = row * (grid_thw[0, 2] + 1) + column
        merged = self.patches // spatial_merge_size**2
        return torch.arange(merged), self.windowed

    def interpolation(
        self,
        grid_thw: Tensor,
        num_grid_per_side: int,
        mode: str = "bilinear",
        align_corners: bool = False,
        spatial_merge_size: int = 1,
        padding: str = "border",
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return the entries of a table of positions, and their weights, for each patch."""
        row, column = self._places(grid_thw, spatial_merge_size)
        sizes = grid_thw[0, 1], grid_thw[0, 2]
        (rows, row_weights), (columns, column_weights) = (
            vision_utils._interpolation_axis_taps_weights(
                place, size, num_grid_per_side, mode, align_corners, padding
            )
            for place, size in zip((row, column), sizes, strict=True)
        )
        indices = rows[:, :, None] * num_grid_per_side + columns[:, None, :]
        weights = row_weights[:, :, None] * column_weights[:, None, :]
        return indices.flatten(1), weights.flatten(1)

    def _places(self, grid_thw: Tensor, merge: int) -> tuple[Tensor, Tensor]:
        """Return row and column of each patch, which come in blocks of merge · merge."""
        indices = torch.arange(self.patches)
        block, within = indices // merge**2, indices % merge**2
        across = grid_thw[0, 2] // merge
        row = block // across * merge + within // merge
        return row, block % across * merge + within % merge

    def select_mask(self, _: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Select the mask of an attention module; a forward pre-hook with keyword arguments."""
        self.mask = None
        if kwargs.get(_LENGTHS) is self.windowed and self.window_P is not None:
            self.mask = self.window_P[:, None] == self.window_P[None, :]


_REPLACED = {
    "get_vision_position_ids": "positions",
    "get_vision_cu_seqlens": "lengths",
    "get_vision_attention_seqlens": "attention_lengths",
    "get_vision_window_index": "windows",
    "get_vision_interpolation_indices_and_weights": "interpolation",
}


@contextmanager
def single_image(module: nn.Module, image: SingleImage) -> Iterator[None]:
    """Let the classes of a module compute with the positions of one image."""
    spaces = {sys.modules[type(part).__module__] for part in module.modules()}
    restored: list[tuple[Any, str, Any]] = []
    hooks = [
        part.register_forward_pre_hook(image.select_mask, with_kwargs=True)
        for part in image.attention
    ]
    attention, split = functional.scaled_dot_product_attention, torch.split

    def masked(*args: Any, **kwargs: Any) -> Tensor:
        if image.mask is not None:
            kwargs["attn_mask"] = image.mask
        return attention(*args, **kwargs)

    def whole(tensor: Tensor, sizes: Any, dim: int = 0) -> tuple[Tensor, ...]:
        one = isinstance(sizes, list) and len(sizes) == 1
        return (tensor,) if one else split(tensor, sizes, dim)

    try:
        for space in spaces:
            for name, method in _REPLACED.items():
                if hasattr(space, name):
                    restored.append((space, name, getattr(space, name)))
                    setattr(space, name, getattr(image, method))
        restored += [
            (functional, "scaled_dot_product_attention", attention),
            (torch, "split", split),
        ]
        functional.scaled_dot_product_attention, torch.split = masked, whole  # type: ignore[assignment]
        yield
    finally:
        for space, name, original in reversed(restored):
            setattr(space, name, original)
        for hook in hooks:
            hook.remove()


def attention_modules(module: nn.Module) -> tuple[nn.Module, ...]:
    """Return the innermost parts of a module that take the lengths of segments of attention."""
    takers = [part for part in module.modules() if _takes_lengths(part)]
    return tuple(
        part
        for part in takers
        if not any(other is not part and other in part.modules() for other in takers)
    )


def _takes_lengths(part: nn.Module) -> bool:
    return _LENGTHS in inspect.signature(type(part).forward).parameters
