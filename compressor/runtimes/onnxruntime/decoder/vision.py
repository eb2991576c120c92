"""The vision tower of a vision-language model in ONNX Runtime, and the positions of image tokens.

Shapes: B sequences of T tokens, I images, P patches of D values, N image tokens of width W.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError, ModelError, PassError
from compressor.foreign_files.libraries import library_errors
from compressor.graphs.decoder.interface import (
    FIXED_IMAGES_KEY,
    IMAGE_EMBEDS,
    IMAGE_TOKEN_KEY,
    INPUT_IDS,
    MERGE_SIZE_KEY,
    POSITION_OFFSETS,
    VISION_MODEL,
)
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.models.families.transformers.images import (
    GRIDS,
    PIXELS,
    TOKEN_TYPES,
    image_units,
    without_padding,
)
from compressor.runtimes.onnxruntime.inference import ERRORS, open_inference_session
from compressor.runtimes.onnxruntime.remedies import first_line

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Inputs of a decoder's graph for the images in a prompt."""

    embeddings_NW: Array
    """Embeddings of all image tokens, in the order of the prompt."""
    position_offsets_3BT: Array
    """Added to each token's position in time, height and width."""
    next_offset_B: Array
    """Added to the position of every token that follows the prompt."""
    is_image_BT: Array
    """True for the tokens that stand for images."""


class VisionTower:
    """``vision.onnx``: embeds one image or tile per call.

    A tower that was traced names the token that its embeddings replace, and takes the arrays of its
    class; one that was built for ``glm4v`` takes the types of the tokens.

    Attributes:
        merge: patches, in height and in width, that become one image token; 0 without grids.
        fixed: values of arrays that every image has to have, by name.
        inputs: the inputs of a batch with images.
    """

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        """Open the tower.

        Raises:
            ModelError: it cannot be opened, or has other metadata or inputs than a vision tower.
        """
        self._session = open_inference_session(folder, threads, device, VISION_MODEL)
        with library_errors(
            f"{folder / VISION_MODEL} is no vision tower that `export-onnx` has written",
            ModelError,
            "copy the file again, or export the model again",
        ):
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.merge = _whole_number(metadata, MERGE_SIZE_KEY) or 0
            self._token_id = _whole_number(metadata, IMAGE_TOKEN_KEY)
            self._shapes = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
            self.fixed: dict[str, Any] = _fixed_arrays(metadata.get(FIXED_IMAGES_KEY, "{}"))
            self.inputs = self._input_specs()

    def _input_specs(self) -> tuple[InputSpec, ...]:
        if self._token_id is not None:
            dtypes = {value.name: value.type for value in self._session.get_inputs()}
            return tuple(
                InputSpec(
                    name,
                    "float32" if "float" in dtypes.get(name, "int64") else "int64",
                    ("batch", REST),
                    optional=True,
                )
                for name in (*dtypes, *self.fixed)
            )
        patch_values = self._shapes[PIXELS][1]
        return (
            InputSpec(TOKEN_TYPES, "int64", ("batch", "tokens"), below=2, optional=True),
            InputSpec(PIXELS, "float32", ("batch", "patches", int(patch_values)), optional=True),
            InputSpec(GRIDS, "int64", ("batch", "images", 3), optional=True),
        )

    @staticmethod
    def open_if_present(folder: Path, threads: int, device: str = "cpu") -> VisionTower | None:
        """Open the vision tower of a decoder; return None if it has none."""
        return VisionTower(folder, threads, device) if (folder / VISION_MODEL).is_file() else None

    def encode_image(self, pixels_PD: Array, grid_3: Array) -> Array:
        """Return the embeddings of one image, float32 [N, W].

        Args:
            pixels_PD: float32 patches.
            grid_3: number of patches in time, height and width.

        Raises:
            PassError: ONNX Runtime failed inside the graph.
        """
        return self.encode_unit({PIXELS: pixels_PD, GRIDS: grid_3[None]})

    def encode_unit(self, feeds: Batch) -> Array:
        """Return the embeddings of one image or tile, float32 [N, W], from the class's arrays.

        Raises:
            DataError: the graph computes images of another size.
            PassError: ONNX Runtime failed inside the graph.
        """
        if self.fixed:
            feeds = self._of_fixed_size(feeds)
        try:
            embeddings_NW: Array = self._session.run([IMAGE_EMBEDS], feeds)[0]
        except ERRORS as error:
            raise PassError(f"ONNX Runtime failed: {first_line(error)}") from error
        return embeddings_NW

    def _of_fixed_size(self, arrays: Batch) -> Batch:
        """Return the graph's inputs without the tiles of zeros that only fill an array."""
        found = {name: arrays[name].tolist() for name in self.fixed}
        if found != self.fixed:
            raise DataError(
                f"{VISION_MODEL} computes images of {_described(self.fixed)} alone, and this one "
                f"has {_described(found)}",
                remedy="scale the image to that size, or export again with samples of this size",
            )
        return {
            name: np.ascontiguousarray(arrays[name][tuple(slice(size) for size in shape)])
            for name, shape in self._shapes.items()
        }

    def encode_batch(self, feeds: Batch) -> ImageInputs | None:
        """Return the image inputs of a batch as ``encode`` does, or None if it has no images."""
        if self._token_id is not None:
            names = [*self._shapes, *self.fixed]
            arrays = {name: feeds[name] for name in names if name in feeds}
            is_image_BT = feeds[INPUT_IDS] == self._token_id
            complete = len(arrays) == len(names)
            return self._encode_arrays(is_image_BT, arrays) if complete else None
        if not feeds.keys() >= {TOKEN_TYPES, PIXELS, GRIDS} or not feeds[TOKEN_TYPES].any():
            return None
        return self.encode(feeds[TOKEN_TYPES], feeds[PIXELS], feeds[GRIDS])

    def _encode_arrays(self, is_image_BT: Array, arrays: Batch) -> ImageInputs | None:
        """Return the image inputs of a batch with the arrays of a class, [B, rows, …].

        Raises:
            DataError: the number of image tokens does not match the number of embeddings.
            PassError: ONNX Runtime failed inside the graph.
        """
        embeddings: list[Array] = []
        offsets, next_offsets = [], []
        for row, is_image_T in enumerate(is_image_BT):
            sample = {name: without_padding(array[row]) for name, array in arrays.items()}
            before = sum(len(rows) for rows in embeddings)
            ranks = {name: len(shape) for name, shape in self._shapes.items()}
            ranks |= {name: np.ndim(value) for name, value in self.fixed.items()}
            embeddings += [self.encode_unit(unit) for unit in image_units(sample, ranks)]
            if (count := sum(len(rows) for rows in embeddings) - before) != is_image_T.sum():
                raise DataError(
                    f"{int(is_image_T.sum())} image tokens do not match {count} embeddings of "
                    "images",
                    remedy="take both from the checkpoint's own processor, "
                    "and do not truncate prompts inside an image",
                )
            grids = list(sample[GRIDS]) if GRIDS in sample else []
            kinds_T = is_image_T.astype(np.int64) if grids else np.zeros(len(is_image_T), np.int64)
            offsets_3T, next_offset = position_offsets(kinds_T, grids, self.merge)
            offsets.append(offsets_3T)
            next_offsets.append(next_offset)
        if not embeddings:
            return None
        return ImageInputs(
            np.concatenate(embeddings),
            np.stack(offsets, axis=1),
            np.array(next_offsets, dtype=np.int64),
            is_image_BT,
        )

    def encode(self, kinds_BT: Array, pixels_BPD: Array, grids_BI3: Array) -> ImageInputs:
        """Return the image inputs of a batch.

        Args:
            kinds_BT: 1 for an image token, 0 for text and padding.
            pixels_BPD: patches of each sequence's images, padded at the end.
            grids_BI3: patches of each image in time, height and width; 0 for padding.

        Raises:
            DataError: the number of image tokens does not match the number of patches.
            PassError: ONNX Runtime failed inside the graph.
        """
        embeddings, offsets, next_offsets = [], [], []
        for kinds_T, pixels_PD, grids_I3 in zip(kinds_BT, pixels_BPD, grids_BI3, strict=True):
            grids = [grid for grid in grids_I3 if grid.prod() > 0]
            self._check_counts(kinds_T, grids)
            start = 0
            for grid in grids:
                end = start + int(grid.prod())
                pixels = np.ascontiguousarray(pixels_PD[start:end])
                embeddings.append(self.encode_image(pixels, grid))
                start = end
            offsets_3T, next_offset = position_offsets(kinds_T, grids, self.merge)
            offsets.append(offsets_3T)
            next_offsets.append(next_offset)
        return ImageInputs(
            np.concatenate(embeddings) if embeddings else np.empty((0, 0), dtype=np.float32),
            np.stack(offsets, axis=1),
            np.array(next_offsets, dtype=np.int64),
            kinds_BT == 1,
        )

    def _check_counts(self, kinds_T: Array, grids: list[Array]) -> None:
        tokens = int((kinds_T == 1).sum())
        if sum(int(grid.prod()) for grid in grids) != self.merge**2 * tokens:
            raise DataError(
                f"{tokens} image tokens do not match images of "
                f"{[grid.tolist() for grid in grids]} patches",
                remedy="take both from the checkpoint's own processor, "
                "and do not truncate prompts inside an image",
            )


def _described(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value[0]}" for name, value in values.items())


def image_shapes(session: Any) -> dict[str, list[Any]]:
    """Return the shapes of a decoder's inputs for images; a traced graph requires them."""
    inputs = (*session.get_inputs(), *session.get_overridable_initializers())
    names = {IMAGE_EMBEDS, POSITION_OFFSETS}
    return {value.name: value.shape for value in inputs if value.name in names}


def no_images(name: str, shape: list[Any], ids_BT: Array) -> Array:
    """Return an input for images of a batch that has none."""
    if name == IMAGE_EMBEDS:
        return np.empty((0, shape[1]), np.float32)
    return np.zeros((3, *ids_BT.shape), np.int64)


def position_offsets(kinds_T: Array, grids: list[Array], merge: int) -> tuple[Array, int]:
    """Return the M-RoPE position of each token minus its index.

    An image token's position is its row and column, counted from the image's first position; the
    text behind an image continues after the image's longer side (M-RoPE, Wang et al. 2024).

    Args:
        kinds_T: 1 for an image token, 0 for text.
        grids: patches of each image in time, height and width.
        merge: patches, in height and in width, that become one image token.

    Returns:
        The offsets in time, height and width, int64 [3, T], and the offset of all tokens that
        follow.
    """
    positions_3T = np.empty((3, len(kinds_T)), dtype=np.int64)
    remaining_grids = iter(grids)
    index = position = 0
    while index < len(kinds_T):
        if kinds_T[index] == 0:
            positions_3T[:, index] = position
            index, position = index + 1, position + 1
            continue
        frames, height, width = (int(size) for size in next(remaining_grids))
        height, width = height // merge, width // merge
        count = frames * height * width
        positions_3T[:, index : index + count] = (
            np.indices((frames, height, width)).reshape(3, -1) + position
        )
        index, position = index + count, position + max(height, width)
    return positions_3T - np.arange(len(kinds_T)), position - len(kinds_T)


def _whole_number(metadata: Mapping[str, str], key: str) -> int | None:
    """Return a whole number of a graph's metadata; None if it has none.

    Raises:
        ValueError: it is another text, or out of range.
    """
    if key not in metadata:
        return None
    number = int(metadata[key])
    if not 0 <= number < 1 << 31:
        raise ValueError(f"{key} is {number}")
    return number


def _fixed_arrays(text: str) -> dict[str, Any]:
    """Return the values of arrays that every image has, from a graph's metadata.

    Raises:
        ValueError: the text is not a JSON object.
    """
    arrays = json.loads(text)
    if not isinstance(arrays, dict):
        raise ValueError(f"{FIXED_IMAGES_KEY} is not a JSON object")
    return arrays
