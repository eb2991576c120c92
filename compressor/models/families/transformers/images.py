"""Image inputs: padded per sample in data sets, packed over the batch in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compressor.models.capabilities.signature import InputSpec
from compressor.models.families.transformers.layouts import LAYOUTS, vision_config

if TYPE_CHECKING:
    from torch import nn

PIXELS = "pixel_values"
"""Input with the patches of the images."""
GRIDS = "image_grid_thw"
"""Input with the numbers of patches of each image in time, height and width."""
TOKEN_TYPES = "mm_token_type_ids"  # noqa: S105  no password
"""Input with the type of each token: 0 for text, 1 for image, 2 for video."""


def image_inputs(tree: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """Return the inputs of a vision-language model beside tokens; none for other models.

    Patches of a sample's images are padded with zeros to [B, patches, values], and tokens to the
    longest sample, where ``attention_mask`` is 0.
    """
    if LAYOUTS[tree["model_type"]].vision is None:
        return ()
    vision = vision_config(tree)
    values = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    return (
        InputSpec("attention_mask", "int64", ("batch", "tokens"), below=2, optional=True),
        InputSpec(TOKEN_TYPES, "int64", ("batch", "tokens"), below=3, optional=True),
        InputSpec(PIXELS, "float32", ("batch", "patches", values), optional=True),
        InputSpec(GRIDS, "int64", ("batch", "images", 3), optional=True),
    )


def gather_images(
    module: nn.Module,  # noqa: ARG001
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Remove the padding of image inputs; a forward pre-hook with keyword arguments.

    [B, P, D] patches and [B, images, 3] grids become [patches, D] and [images, 3], as transformers
    takes them. Patches that already have two axes are left as they are.
    """
    import torch

    values = kwargs.get(PIXELS)
    if values is None or values.ndim == 2:
        return args, kwargs
    grids = kwargs[GRIDS]
    counts = grids.prod(dim=-1).sum(dim=-1).tolist()
    if not any(counts):
        images = {PIXELS, GRIDS, TOKEN_TYPES}
        return args, {name: value for name, value in kwargs.items() if name not in images}
    patches = torch.cat([sample[:count] for sample, count in zip(values, counts, strict=True)])
    return args, {**kwargs, PIXELS: patches, GRIDS: grids[grids.prod(dim=-1) > 0]}
