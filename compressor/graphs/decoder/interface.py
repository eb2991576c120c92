"""The keys and values that a decoder's graph takes and gives: which inputs they are, and buffers for them.

Shapes: B samples, N key heads of width H, P tokens before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import ModelError

PAST, PRESENT = "past_key_values.", "present."
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(int8)": np.dtype(np.int8),
}
CONTEXT = "autoglm_compress.context_length"
"""The key under which a decoder's file says how many tokens it attends to."""
MASK, IDS, LOGITS, KEEP = "attention_mask", "input_ids", "logits", "logits_to_keep"
VISION = "vision.onnx"
"""The tower: `pixel_values` float32 [P, D] of one image and `image_grid_thw` int64 [1, 3] to `image_embeds` [W, H]."""
EMBEDS, OFFSETS = "image_embeds", "position_offsets"
MERGE = "autoglm_compress.merge"
"""The key under which the tower's file says how many patches, in height and in width, become one word."""


@dataclass(frozen=True, slots=True)
class Caches:
    """Of one decoder."""

    names: tuple[str, ...]
    """The inputs: ``past_key_values.<layer>.key`` and ``.value``."""
    heads: int
    width: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, inputs: Sequence[Any]) -> Caches | None:
        """From what ONNX Runtime tells of a graph's inputs; None where the graph has no keys and values.

        Raises:
            ModelError: they are not [B, N, P, H], float32 or int8, with N and H alike and known.
        """
        found = [one for one in inputs if one.name.startswith(PAST)]
        if not found:
            return None
        shapes = {tuple(one.shape[1:2] + one.shape[3:]) for one in found if len(one.shape) == 4}
        types = {one.type for one in found}
        known = len(types) == 1 and types <= _DTYPES.keys()
        if len(shapes) != 1 or not known or not all(isinstance(size, int) for size in min(shapes)):
            raise ModelError(
                f"keys and values of shapes {sorted(map(str, shapes))} and types {sorted(types)}; expected float32 or int8 "
                "[batch, key heads, past, head width], alike in every layer",
                remedy="export the model again",
            )
        heads, width = shapes.pop()
        return cls(tuple(one.name for one in found), heads, width, _DTYPES[types.pop()])

    def nothing(self, samples: int) -> Batch:
        """What a decoder is given that has seen nothing yet."""
        empty = np.empty((samples, self.heads, 0, self.width), dtype=self.dtype)
        return dict.fromkeys(self.names, empty)

    def bytes(self, samples: int, tokens: int) -> int:
        """That buffers for so many tokens take."""
        return len(self.names) * samples * self.heads * tokens * self.width * self.dtype.itemsize

    def room(self, samples: int, tokens: int) -> Batch:
        """Buffers for so many tokens, zero."""
        return {
            name: np.zeros((samples, self.heads, tokens, self.width), dtype=self.dtype)
            for name in self.names
        }

    @staticmethod
    def present(name: str) -> str:
        """The output that an input's next value comes from."""
        return PRESENT + name.removeprefix(PAST)
