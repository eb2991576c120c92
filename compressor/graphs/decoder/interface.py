"""Interface of decoder graphs: names of inputs, outputs and metadata, and their key-value cache.

Shapes: B sequences, N key heads of width H, P cached positions, M patches of D values, W rows of
image embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import ModelError

INPUT_IDS, ATTENTION_MASK, LOGITS = "input_ids", "attention_mask", "logits"
LOGITS_TO_KEEP = "logits_to_keep"
IMAGE_EMBEDS, POSITION_OFFSETS = "image_embeds", "position_offsets"
PAST_PREFIX, PRESENT_PREFIX = "past_key_values.", "present."
CONTEXT_LENGTH_KEY = "autoglm_compress.context_length"
"""Metadata key for the number of positions that a decoder attends to."""
TARGET_KEY = "autoglm_compress.target"
"""Metadata key for the runtime whose operators a decoder uses: `onnxruntime` or `portable`."""
VISION_MODEL = "vision.onnx"
"""File of the vision tower: `pixel_values` float32 [M, D] of one image and `image_grid_thw`
int64 [1, 3] in, `image_embeds` [W, H] out."""
MERGE_SIZE_KEY = "autoglm_compress.merge"
"""Metadata key of the vision tower for the number of patches, in height and in width, that are
merged into one embedding."""
_CACHE_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(int8)": np.dtype(np.int8),
}


@dataclass(frozen=True, slots=True)
class KvCacheLayout:
    """Names, shape and type of a decoder's key-value cache."""

    names: tuple[str, ...]
    """Inputs of the graph: ``past_key_values.<layer>.key`` and ``.value``."""
    heads: int
    """Key heads N."""
    width: int
    """Width H of a head."""
    dtype: np.dtype[Any]

    @classmethod
    def from_inputs(cls, inputs: Sequence[Any]) -> KvCacheLayout | None:
        """Return the layout of a graph's cache; None if the graph has no cache.

        Args:
            inputs: the inputs of a session of ONNX Runtime.

        Raises:
            ModelError: keys and values are not [B, N, P, H] of float32 or int8, with known N and H
                that are alike in every layer.
        """
        caches = [value for value in inputs if value.name.startswith(PAST_PREFIX)]
        if not caches:
            return None
        shapes = {
            tuple(value.shape[1:2] + value.shape[3:]) for value in caches if len(value.shape) == 4
        }
        types = {value.type for value in caches}
        is_known_type = len(types) == 1 and types <= _CACHE_DTYPES.keys()
        fixed = len(shapes) == 1 and all(isinstance(size, int) for size in min(shapes))
        if not is_known_type or not fixed:
            raise ModelError(
                f"the graph has keys and values of shapes {sorted(map(str, shapes))} and types "
                f"{sorted(types)}; expected float32 or int8 [batch, key heads, past, head width], "
                "alike in every layer",
                remedy="export the model again",
            )
        heads, width = shapes.pop()
        names = tuple(value.name for value in caches)
        return cls(names, heads, width, _CACHE_DTYPES[types.pop()])

    def empty(self, batch_size: int) -> Batch:
        """Return an empty cache, [B, N, 0, H], which a first call reads."""
        array = np.empty((batch_size, self.heads, 0, self.width), dtype=self.dtype)
        return dict.fromkeys(self.names, array)

    def zeros(self, batch_size: int, capacity: int) -> Batch:
        """Return zero buffers for ``capacity`` positions, [B, N, capacity, H]."""
        shape = (batch_size, self.heads, capacity, self.width)
        return {name: np.zeros(shape, dtype=self.dtype) for name in self.names}

    def size_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of buffers for ``capacity`` positions."""
        values = batch_size * self.heads * capacity * self.width
        return len(self.names) * values * self.dtype.itemsize

    @staticmethod
    def present_name(name: str) -> str:
        """Return the output that holds an input's keys or values after a call."""
        return PRESENT_PREFIX + name.removeprefix(PAST_PREFIX)
