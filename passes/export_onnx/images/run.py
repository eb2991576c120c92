"""Division of a vision-language class into a tower and a decoder, compared with it in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.data.contract import Batch
from compressor.errors import CompressError, PassError
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    IMAGE_EMBEDS,
    INPUT_IDS,
    POSITION_OFFSETS,
)
from compressor.models.capabilities.cached_generation import CachedGeneration, CachedTensor
from compressor.models.families.transformers.images import (
    GRIDS,
    image_units,
    without_padding,
)
from compressor.models.families.transformers.processor import Processor
from compressor.runtimes.onnxruntime.decoder.vision import position_offsets
from passes.export_onnx.cached.graph import ExtraInput
from passes.export_onnx.images.decoder import ImageDecoder, has_image_inputs, image_token
from passes.export_onnx.images.fixed import fixed_values
from passes.export_onnx.images.tower import ImageTower, features

_BATCH, _TOKENS, _ROWS = 2, 3, 7
"""Sizes of the traced call of a decoder; those of ``cached.graph``, and another one."""
_MAX_ABS = 1e-2
"""Largest difference between the parts and the class in torch, relative to the largest value."""


_ERRORS_OF_CLASSES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of Python and torch for values that code does not expect; not the lack of memory, files
or time."""


class SeparateTowerError(PassError):
    """A class whose images cannot be computed apart from its decoder."""


@dataclass(frozen=True, slots=True)
class ImageParts:
    """A class in two parts: a tower for one image at a time, and a decoder."""

    module: Any
    """The class in float32."""
    tower: ImageTower
    samples: tuple[dict[str, Tensor], ...]
    """Arrays of images of several samples, as ``get_image_features`` takes them."""
    width: int
    """Values of an image embedding."""
    folder: Path
    """The checkpoint."""

    def decoder(self, tensors: Sequence[CachedTensor]) -> ImageDecoder:
        """Return the decoder."""
        token_id = image_token(self.module)
        assert token_id is not None  # noqa: S101 - checked by `split_class`
        return ImageDecoder(self.module, tensors, token_id)

    def extra_inputs(self, decoder: ImageDecoder) -> list[ExtraInput]:
        """Return the inputs of the decoder for images."""
        embeddings = torch.zeros(_ROWS, self.width)
        inputs = [ExtraInput(IMAGE_EMBEDS, embeddings, {0: "image_tokens"})]
        if decoder.rotates_in_3d:
            offsets = torch.zeros(3, _BATCH, _TOKENS, dtype=torch.int64)
            inputs.append(ExtraInput(POSITION_OFFSETS, offsets, {1: "batch", 2: "tokens"}))
        return inputs

    def units(self, sample: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the arrays of one image or tile after another."""
        arrays = {name: value.numpy() for name, value in sample.items()}
        ranks = {name: value.ndim for name, value in sample.items()}
        for unit in image_units(arrays, ranks):
            yield tuple(torch.from_numpy(unit[name]) for name in self.tower.names)

    def fits(self, sample: Mapping[str, Tensor], fixed: Mapping[str, Any]) -> bool:
        """Return True if all images of a sample have the values of ``VisionTower.fixed``."""
        return not fixed or all(fixed_values(unit) == fixed for unit in self._named(sample))

    def count(self, fixed: Mapping[str, Any]) -> int:
        """Return the number of images of all samples that have the values of ``fixed``."""
        units = [unit for sample in self.samples for unit in self._named(sample)]
        return sum(not fixed or fixed_values(unit) == fixed for unit in units)

    def _named(self, sample: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        for unit in self.units(sample):
            yield dict(zip(self.tower.names, unit, strict=True))

    def fitting(self, windows: Sequence[Batch], fixed: Mapping[str, Any]) -> list[Batch]:
        """Return the windows of text, and those whose images have the values of ``fixed``."""
        names = self.tower.names
        return [
            window
            for window in windows
            if len(window) == 1 or self.fits(_arrays(window, names), fixed)
        ]


def split_class(
    module: Any, generation: CachedGeneration, windows: Sequence[Batch], folder: Path
) -> ImageParts:
    """Return a class in two parts, which are compared with the whole in torch.

    Args:
        module: the class in float32.
        generation: describes its cache.
        windows: samples of tokens, some with images; without any, the checkpoint's processor
            encodes one.
        folder: the checkpoint.

    Raises:
        SeparateTowerError: the parts do not compute what the class does, or there are no images.
    """
    if not has_image_inputs(module):
        raise SeparateTowerError("the class has no image features apart from its decoder")
    names = [spec.name for spec in generation.image_inputs]
    images = [window for window in windows if len(window) > 1] or [_probe(folder)]
    samples = tuple(_arrays(window, names) for window in images)
    try:
        with torch.no_grad():
            tower = ImageTower(module, tuple(samples[0]))
            expected = [features(module, sample) for sample in samples]
            parts = ImageParts(module, tower, samples, expected[0].shape[1], folder)
            for sample, embeddings in zip(samples, expected, strict=True):
                _check("tower", torch.cat([tower(*u) for u in parts.units(sample)]), embeddings)
            for window, embeddings in zip(images, expected, strict=True):
                _check_decoder(parts, generation, window, embeddings)
    except CompressError:
        raise
    except _ERRORS_OF_CLASSES as error:  # it reads values in ways that one image does not fit
        raise SeparateTowerError(f"{type(error).__name__}: {error}") from error
    return parts


def _probe(folder: Path) -> Batch:
    """Return a window with one image, encoded by the checkpoint's processor."""
    try:
        encoding = Processor(folder).probe
    except CompressError as error:
        raise SeparateTowerError(f"no sample has an image, and {error.what}") from error
    return {
        INPUT_IDS: encoding.input_ids[None],
        **{name: array[None] for name, array in encoding.arrays.items()},
    }


def _arrays(window: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the arrays of images of a window as the class takes them."""
    shape = window[INPUT_IDS].shape
    return {
        name: torch.from_numpy(without_padding(window[name][0]))
        for name in names
        if name in window and window[name].shape != shape and name != ATTENTION_MASK
    }


def _check_decoder(
    parts: ImageParts, generation: CachedGeneration, window: Batch, embeddings: Tensor
) -> None:
    """Compare the logits of the decoder with those of the class on a window with images."""
    decoder = parts.decoder(generation.tensors)
    tensors = {name: torch.from_numpy(array) for name, array in window.items()}
    expected = parts.module(**tensors, use_cache=False).logits
    ids_1T = tensors[INPUT_IDS]
    extra = [embeddings]
    if decoder.rotates_in_3d:
        grids = list(parts.samples[0].get(GRIDS, torch.empty(0, 3)))
        grids = [grid.numpy() for grid in tensors[GRIDS][0]] if GRIDS in tensors else grids
        kinds_T = (ids_1T[0] == decoder.token_id).numpy().astype(np.int64)
        offsets_3T, _ = position_offsets(kinds_T, grids, merge_size(parts.module))
        extra.append(torch.from_numpy(offsets_3T)[:, None])
    past = [_empty(tensor) for tensor in generation.tensors]
    mask, kept = torch.ones_like(ids_1T), torch.arange(ids_1T.shape[1])
    _check("decoder", decoder(ids_1T, mask, kept, *extra, *past)[0], expected)


def _empty(tensor: CachedTensor) -> Tensor:
    sizes = {"batch": 1, "past": 0}
    return torch.zeros([size if isinstance(size, int) else sizes[size] for size in tensor.shape])


def _check(part: str, actual: Tensor, expected: Tensor) -> None:
    if actual.shape != expected.shape:
        raise SeparateTowerError(f"its {part} gives {[*actual.shape]} of {[*expected.shape]}")
    if not (actual - expected).abs().max() <= _MAX_ABS * expected.abs().max():
        raise SeparateTowerError(f"its {part} alone gives other values than the class")


def merge_size(module: Any) -> int:
    """Return the number of patches, in height and width, that become one embedding."""
    return int(getattr(module.config.vision_config, "spatial_merge_size", 1))
