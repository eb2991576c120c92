"""Keys and values in 8 bits: how large those of a decoder get, which gives each value of a head its step.

Keys have a few wide values that are wide for every token, so one step for each of them, whatever the token, loses little (Liu et
al. 2024, KIVI, for keys); the runtime's kernels want the same for values. Shapes: P tokens, N key heads of width H.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.runtimes.onnx_caches import IDS
from compressor.runtimes.onnx_decoder import OnnxDecoder
from compressor.runtimes.onnx_images import VisionTower

Array = np.ndarray[Any, Any]
_LARGEST = 127
_SMALLEST_STEP = 1e-8


def cache_steps(folder: Path, windows: Sequence[Batch], threads: int) -> dict[str, Array]:
    """Of each input of keys or values, float32 [N · H], from what the graph in ``folder`` keeps of windows in float."""
    longest = max(window[IDS].shape[1] for window in windows)
    decoder, tower = OnnxDecoder(folder, threads, room=longest), VisionTower.beside(folder, threads)
    peaks: dict[str, Array] = {}
    for window in windows:
        decoder.start()
        decoder.feed(window[IDS], images=None if tower is None else tower.seen_in(window))
        for name, said_1NPH in decoder.said().items():
            peak = np.abs(said_1NPH[0]).max(axis=1).ravel()
            peaks[name] = np.maximum(peaks.get(name, 0), peak)
    return {name: np.maximum(peak / _LARGEST, _SMALLEST_STEP).astype(np.float32) for name, peak in peaks.items()}
