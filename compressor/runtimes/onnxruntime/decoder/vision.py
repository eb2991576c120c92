"""The vision tower of a vision-language model in ONNX Runtime, and the positions of image tokens.

Shapes: B sequences of T tokens, I images, P patches of D values, N image tokens of width W.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError, PassError
from compressor.graphs.decoder.interface import IMAGE_EMBEDS, MERGE_SIZE_KEY, VISION_MODEL
from compressor.models.capabilities.signature import InputSpec
from compressor.models.families.transformers.images import GRIDS, PIXELS, TOKEN_TYPES
from compressor.runtimes.onnxruntime.inference import ERRORS, first_line, open_inference_session

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


class VisionTower:
    """``vision.onnx``: embeds one image per call, as patches attend within their image only.

    Attributes:
        merge: patches, in height and in width, that become one image token.
        inputs: the inputs of a batch with images.
    """

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        """Open the tower.

        Raises:
            ModelError: it cannot be opened.
        """
        self._session = open_inference_session(folder, threads, device, VISION_MODEL)
        self.merge = int(self._session.get_modelmeta().custom_metadata_map[MERGE_SIZE_KEY])
        [patch_values] = [
            value.shape[1] for value in self._session.get_inputs() if value.name == PIXELS
        ]
        self.inputs = (
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
        feeds = {PIXELS: pixels_PD, GRIDS: grid_3[None]}
        try:
            embeddings_NW: Array = self._session.run([IMAGE_EMBEDS], feeds)[0]
        except ERRORS as error:
            raise PassError(f"ONNX Runtime failed: {first_line(error)}") from error
        return embeddings_NW

    def encode_batch(self, feeds: Batch) -> ImageInputs | None:
        """Return the image inputs of a batch as ``encode`` does, or None if it has no images."""
        if not feeds.keys() >= {TOKEN_TYPES, PIXELS, GRIDS} or not feeds[TOKEN_TYPES].any():
            return None
        return self.encode(feeds[TOKEN_TYPES], feeds[PIXELS], feeds[GRIDS])

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
