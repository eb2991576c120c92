"""Image inputs of vision-language models: padded per sample in data sets, joined in transformers.

A processor returns, for one conversation, arrays over tokens [T] and arrays of images, whose first
axis counts patches, images or conversations. Classes of transformers take the arrays of several
conversations joined along that axis. Data sets and sessions have samples, so each array of images
is padded to [B, rows, …], and joined again before ``forward``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.models.capabilities.signature import REST, InputSpec
from compressor.models.families.transformers.layouts import LAYOUTS, vision_config

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = np.ndarray[Any, Any]
PIXELS = "pixel_values"
"""Input with the patches of the images."""
GRIDS = "image_grid_thw"
"""Input with the numbers of patches of each image in time, height and width."""
TOKEN_TYPES = "mm_token_type_ids"  # noqa: S105  no password
"""Input with the type of each token: 0 for text, 1 for image, 2 for video."""
SEGMENTS = "token_type_ids"
"""Input with the type of each token, for the classes that read masks from it."""
PADDING_ROW: Mapping[str, float] = {"f": float("nan"), "i": -1}
"""Kind of dtype to the value of rows that only fill a batch: no pixel and no size has it."""
_TOKENS, _MASK = "input_ids", "attention_mask"
_OF_TOKENS = {_TOKENS, _MASK, TOKEN_TYPES, SEGMENTS}
_OF_GENERATION = {"position_ids", "past_key_values", "inputs_embeds", "labels", "logits_to_keep"}
_OTHER_PARTS = (
    "video",
    "audio",
    "feature",
    "decoder_",
    "encoder_",
    "states",
    "embed",
    "per_grid",
    "rope_deltas",
    "per_layer_inputs",
)
"""Parts of names of parameters for other modalities, and for results computed before."""


def image_inputs(tree: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """Return the inputs of a tabulated model beside tokens; none for a model of text alone.

    Patches of a sample's images are padded to [B, patches, values], and tokens to the longest
    sample, where ``attention_mask`` is 0.
    """
    if LAYOUTS[tree["model_type"]].vision is None:
        return ()
    vision = vision_config(tree)
    values = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    return (
        InputSpec(_MASK, "int64", ("batch", "tokens"), below=2, optional=True),
        InputSpec(TOKEN_TYPES, "int64", ("batch", "tokens"), below=3, optional=True),
        InputSpec(PIXELS, "float32", ("batch", "patches", values), optional=True),
        InputSpec(GRIDS, "int64", ("batch", "images", 3), optional=True),
    )


def class_image_inputs(model_class: type[Any]) -> tuple[InputSpec, ...]:
    """Return the inputs beside tokens of a class that generates text about images.

    They are the tensors that ``forward`` takes, without those of video, audio and generation. None
    for a class that takes no tokens, no images, or that is no decoder. A class that requires
    pixels, as those that describe a picture, takes one picture per sample and nothing is padded.

    Args:
        model_class: a class of transformers.
    """
    parameters = inspect.signature(model_class.forward).parameters
    images = [name for name in parameters if _is_image_input(name, parameters[name])]
    is_decoder = model_class.can_generate() and "decoder_input_ids" not in parameters
    if _TOKENS not in parameters or not is_decoder or not any(map(_has_pixels, images)):
        return ()
    if any(parameters[name].default is inspect.Parameter.empty for name in images):
        return ()
    of_tokens = [name for name in (_MASK, TOKEN_TYPES, SEGMENTS) if name in parameters]
    return (
        *(InputSpec(name, "int64", ("batch", "tokens"), optional=True) for name in of_tokens),
        *(InputSpec(name, _dtype(name), ("batch", REST), optional=True) for name in images),
    )


def _is_image_input(name: str, parameter: inspect.Parameter) -> bool:
    if name in _OF_TOKENS | _OF_GENERATION or any(part in name for part in _OTHER_PARTS):
        return False
    return "Tensor" in str(parameter.annotation)


def _has_pixels(name: str) -> bool:
    return "pixel_values" in name or name in {"flattened_patches", "image_patches"}


def _dtype(name: str) -> str:
    return "float32" if _has_pixels(name) else "int64"


def accept_padded_images(module: nn.Module) -> None:
    """Let a module of transformers take the image arrays of data sets, if it takes images."""
    specs = class_image_inputs(type(module))
    if specs:
        names = frozenset(spec.name for spec in specs) - {_MASK}
        module.register_forward_pre_hook(_ImageGathering(names), with_kwargs=True)


class _ImageGathering:
    """Forward pre-hook with keyword arguments that joins the image arrays of a batch."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names, self.images = names, names - _OF_TOKENS

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Join [B, rows, …] along the rows that are no padding.

        Patches that already have two axes are left as they are, with all other arrays. Without any
        image, the arrays are left out. A traced graph has the same number of images per sample.
        """
        _forget_positions(module, kwargs)
        given = {name: kwargs[name] for name in self.images if kwargs.get(name) is not None}
        if not given or any(value.ndim == 2 for name, value in given.items() if _has_pixels(name)):
            return args, kwargs
        if _is_traced():
            return args, {**kwargs, **{name: value.flatten(0, 1) for name, value in given.items()}}
        joined = _join_by_grids(given) or {name: _join_rows(v) for name, v in given.items()}
        if not any(len(value) for value in joined.values()):
            return args, {name: v for name, v in kwargs.items() if name not in self.names}
        return args, {**kwargs, **joined}


def _is_traced() -> bool:
    import torch

    return torch.compiler.is_exporting()


def _forget_positions(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Reset the distance that positions of M-RoPE gained in an earlier prompt with images."""
    parts = [part for part in (module, getattr(module, "model", None)) if _has_moved(part)]
    cache = kwargs.get("past_key_values")
    if parts and (cache is None or not cache.get_seq_length()):
        for part in parts:
            part.rope_deltas = None  # type: ignore[union-attr]


def _has_moved(part: nn.Module | None) -> bool:
    return getattr(part, "rope_deltas", None) is not None


def _join_by_grids(arrays: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return patches and grids that are padded with zeros, joined; None for other arrays."""
    import torch

    if arrays.keys() != {PIXELS, GRIDS} or arrays[PIXELS].ndim != 3:
        return None
    patches_BPD, grids_BI3 = arrays[PIXELS], arrays[GRIDS]
    counts = grids_BI3.clamp(min=0).prod(dim=-1).sum(dim=-1).tolist()
    patches = [sample[:count] for sample, count in zip(patches_BPD, counts, strict=True)]
    return {PIXELS: torch.cat(patches), GRIDS: grids_BI3[grids_BI3.prod(dim=-1) > 0]}


def _join_rows(values: Tensor) -> Tensor:
    """Return [rows, …] of a batch [B, rows, …] without the rows that are padding."""
    import torch

    flat = values.flatten(0, 1)
    marks = flat
    while marks.ndim > 1:
        marks = marks[:, 0]
    is_padding = torch.isnan(marks) if flat.is_floating_point() else marks == PADDING_ROW["i"]
    return flat[~is_padding] if is_padding.any() else flat


def without_padding(array_RX: Array) -> Array:
    """Return the rows of one sample's array of images that are no padding."""
    marks_R = array_RX
    while marks_R.ndim > 1:
        marks_R = marks_R[:, 0]
    is_padding_R = np.isnan(marks_R) if array_RX.dtype.kind == "f" else marks_R == PADDING_ROW["i"]
    return array_RX[~is_padding_R] if is_padding_R.any() else array_RX


def pad_images(arrays: Sequence[Array]) -> Array:
    """Stack the image arrays of several samples to [B, rows, …].

    Whole rows that are missing get the value of ``PADDING_ROW``, the end of shorter rows zeros.
    """
    sizes = np.max([array.shape for array in arrays], axis=0)
    stacked = np.zeros((len(arrays), *sizes), dtype=arrays[0].dtype)
    for sample, array in enumerate(arrays):
        stacked[sample, len(array) :] = PADDING_ROW[array.dtype.kind]
        corner: tuple[Any, ...] = (sample, *(slice(size) for size in array.shape))
        stacked[corner] = array
    return stacked


def image_units(
    arrays: Mapping[str, Array], ranks: Mapping[str, int]
) -> Iterator[dict[str, Array]]:
    """Yield the arrays of one image or tile after another, from those of one sample.

    Patches are divided by their grids, [P, values] and [1, 3]. Other arrays are divided along the
    first axis, [1, …]; arrays that all are [conversations, images, …] along both, [1, 1, …],
    without the images of zeros that only fill them.

    Args:
        arrays: of one sample, without padding.
        ranks: number of axes of each array of a unit, in which the two kinds differ.
    """
    if arrays.keys() == {PIXELS, GRIDS} and ranks[PIXELS] == 2:
        start = 0
        for grid_3 in arrays[GRIDS]:
            end = start + int(grid_3.prod())
            yield {PIXELS: np.ascontiguousarray(arrays[PIXELS][start:end]), GRIDS: grid_3[None]}
            start = end
        return
    nested = ranks[PIXELS] == 5 and min(ranks.values()) > 2
    rows = {
        name: array.reshape(-1, 1, *array.shape[2:]) if nested else array
        for name, array in arrays.items()
    }
    for row in range(len(rows[PIXELS])):
        if not nested or rows[PIXELS][row].any():
            yield {name: np.ascontiguousarray(array[row : row + 1]) for name, array in rows.items()}


def sample_images(batch: Mapping[str, Array], row: int, length: int) -> dict[str, Array]:
    """Return the image inputs of one sample of a batch, [1, …], without padding; none of a text.

    Args:
        batch: inputs of a data set.
        row: the sample.
        length: its number of tokens.
    """
    tokens = batch[_TOKENS].shape
    names = [name for name in batch if name not in {_TOKENS, _MASK}]
    if not any(map(_has_pixels, names)):
        return {}
    of_tokens = [name for name in names if batch[name].shape == tokens]
    images = {n: without_padding(batch[n][row]) for n in names if n not in of_tokens}
    if images.keys() == {PIXELS, GRIDS}:  # other sources may pad with zeros
        grids_I3 = images[GRIDS][images[GRIDS].prod(axis=-1) > 0]
        images = {PIXELS: images[PIXELS][: int(grids_I3.prod(axis=-1).sum())], GRIDS: grids_I3}
    if not any(map(len, images.values())):
        return {}
    types = {name: batch[name][row : row + 1, :length] for name in of_tokens}
    return {**types, **{name: array[None] for name, array in images.items()}}
