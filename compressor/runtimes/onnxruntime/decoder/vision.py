"""The images of a vision-language model in ONNX Runtime: its vision tower, and where its words stand.

Shapes: B samples of T tokens, I images, P patches of D values, W words of all images of width H.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError, PassError
from compressor.graphs.decoder.interface import EMBEDS, MERGE, VISION
from compressor.models.capabilities.signature import InputSpec
from compressor.models.families.transformers.images import GRIDS, KINDS, PIXELS
from compressor.runtimes.onnxruntime.inference import ERRORS, first_line, opened

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """What a decoder is fed of the images in its prompt."""

    embeds_WH: Array
    offsets_3BT: Array
    """What is added to each token's position, in time, height and width."""
    after_B: Array
    """The same for all tokens that follow."""


class VisionTower:
    """``vision.onnx``, one image a call: its patches see each other, and those of no other image."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        """Open it.

        Raises:
            ModelError: it cannot be opened.
        """
        self._session = opened(folder, threads, device, VISION)
        self.merge = int(self._session.get_modelmeta().custom_metadata_map[MERGE])
        [values] = [one.shape[1] for one in self._session.get_inputs() if one.name == PIXELS]
        self.inputs = (
            InputSpec(KINDS, "int64", ("batch", "tokens"), below=2, optional=True),
            InputSpec(PIXELS, "float32", ("batch", "patches", int(values)), optional=True),
            InputSpec(GRIDS, "int64", ("batch", "images", 3), optional=True),
        )

    @staticmethod
    def beside(folder: Path, threads: int, device: str = "cpu") -> VisionTower | None:
        """That of a decoder; None where it has none."""
        return VisionTower(folder, threads, device) if (folder / VISION).is_file() else None

    def embeds(self, pixels_PD: Array, grid_3: Array) -> Array:
        """The words of one image, float32 [W, H].

        Raises:
            PassError: ONNX Runtime failed inside the graph.
        """
        try:
            found: Array = self._session.run([EMBEDS], {PIXELS: pixels_PD, GRIDS: grid_3[None]})[0]
        except ERRORS as error:
            raise PassError(f"ONNX Runtime failed: {first_line(error)}") from error
        return found

    def encode_batch(self, feeds: Batch) -> ImageInputs | None:
        """As ``shown``, of a batch that may have no images in it."""
        if not feeds.keys() >= {KINDS, PIXELS, GRIDS} or not feeds[KINDS].any():
            return None
        return self.shown(feeds[KINDS], feeds[PIXELS], feeds[GRIDS])

    def shown(self, kinds_BT: Array, pixels_BPD: Array, grids_BI3: Array) -> ImageInputs:
        """All images of a batch. Padding: kinds 0, patches beyond those of the grids, grids of 0.

        Raises:
            DataError: tokens and patches tell of different images.
            PassError: ONNX Runtime failed inside the graph.
        """
        embeds, offsets, after = [], [], []
        for kinds_T, pixels_PD, grids_I3 in zip(kinds_BT, pixels_BPD, grids_BI3, strict=True):
            grids = [grid for grid in grids_I3 if grid.prod()]
            if sum(int(grid.prod()) for grid in grids) != self.merge**2 * int((kinds_T == 1).sum()):
                raise DataError(
                    f"{int((kinds_T == 1).sum())} tokens stand for images of {[grid.tolist() for grid in grids]} patches",
                    remedy="take both from the checkpoint's own processor, and cut no image in the middle",
                )
            start = 0
            for grid in grids:
                end = start + int(grid.prod())
                embeds.append(self.embeds(np.ascontiguousarray(pixels_PD[start:end]), grid))
                start = end
            offsets_3T, following = position_offsets(kinds_T, grids, self.merge)
            offsets.append(offsets_3T)
            after.append(following)
        return ImageInputs(
            np.concatenate(embeds) if embeds else np.empty((0, 0), dtype=np.float32),
            np.stack(offsets, axis=1),
            np.array(after, dtype=np.int64),
        )


def position_offsets(kinds_T: Array, grids: list[Array], merge: int) -> tuple[Array, int]:
    """How far each token's positions in time, height and width, [3, T], are from its place; and those of all that follow.

    A word of an image stands at its row and column, counted from where the image begins; text goes on behind the longer side
    of the image (M-RoPE, Wang et al. 2024).
    """
    positions_3T = np.empty((3, len(kinds_T)), dtype=np.int64)
    left = iter(grids)
    at = position = 0
    while at < len(kinds_T):
        if kinds_T[at] == 0:
            positions_3T[:, at] = position
            at, position = at + 1, position + 1
            continue
        frames, height, width = (int(size) for size in next(left))
        height, width = height // merge, width // merge
        count = frames * height * width
        positions_3T[:, at : at + count] = (
            np.indices((frames, height, width)).reshape(3, -1) + position
        )
        at, position = at + count, position + max(height, width)
    return positions_3T - np.arange(len(kinds_T)), position - len(kinds_T)
