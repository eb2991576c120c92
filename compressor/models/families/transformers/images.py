"""Images as data sets hold them, sample by sample, and as transformers wants them: the patches of a batch in one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compressor.models.capabilities.signature import InputSpec
from compressor.models.families.transformers.layouts import LAYOUTS

if TYPE_CHECKING:
    from torch import nn

PIXELS, GRIDS, KINDS = "pixel_values", "image_grid_thw", "mm_token_type_ids"
"""The names that transformers gives to patches, to how many there are in time, height and width, and to what each token is."""


def image_inputs(tree: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """What a vision-language model takes beside tokens; nothing for other models.

    Shapes: P patches of a sample's images, each of D values, padded with zeros; so are tokens, where `attention_mask` is 0.
    """
    if LAYOUTS[tree["model_type"]].vision is None:
        return ()
    vision = tree["vision_config"]
    values = (
        vision.get("in_channels", 3)
        * vision.get("temporal_patch_size", 2)
        * vision.get("patch_size", 14) ** 2
    )
    return (
        InputSpec("attention_mask", "int64", ("batch", "tokens"), below=2, optional=True),
        InputSpec(KINDS, "int64", ("batch", "tokens"), below=3, optional=True),
        InputSpec(PIXELS, "float32", ("batch", "patches", values), optional=True),
        InputSpec(GRIDS, "int64", ("batch", "images", 3), optional=True),
    )


def gather_images(
    module: nn.Module,  # noqa: ARG001
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook before ``forward``: [B, P, D] patches and [B, images, 3] grids become [patches, D] and [images, 3], without padding.

    Patches [patches, D], as transformers' own processors give them, are left alone.
    """
    import torch

    values = kwargs.get(PIXELS)
    if values is None or values.ndim == 2:
        return args, kwargs
    grids = kwargs[GRIDS]
    counts = grids.prod(dim=-1).sum(dim=-1).tolist()
    if not any(counts):
        return args, {
            name: value for name, value in kwargs.items() if name not in {PIXELS, GRIDS, KINDS}
        }
    patches = torch.cat([one[:count] for one, count in zip(values, counts, strict=True)])
    return args, {**kwargs, PIXELS: patches, GRIDS: grids[grids.prod(dim=-1) > 0]}
