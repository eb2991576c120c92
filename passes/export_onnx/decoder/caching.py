"""Keys and values in 8 bits: how large those of a decoder get, which gives each value of a head its scale.

Keys have a few values that are wide for every token, so one scale for each of them, whatever the token, loses little (Liu et al.
2024, KIVI, for keys); the runtime's kernels want the same for values. Shapes: P tokens, N key heads of width H.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.graphs.decoder.architecture import Architecture
from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower

Array = np.ndarray[Any, Any]
_LARGEST = 127
_SMALLEST_SCALE = 1e-8


def cache_scales(
    folder: Path, architecture: Architecture, windows: Sequence[Batch], threads: int
) -> dict[str, Array]:
    """Of each input of keys or values, float32 [N · H], from what the graph in ``folder`` keeps of windows in float."""
    longest = max(window[INPUT_IDS].shape[1] for window in windows)
    decoder, tower = (
        OnnxDecoder(folder, threads, capacity=longest),
        VisionTower.open_if_present(folder, threads),
    )
    peaks: dict[str, Array] = {}
    for window in windows:
        decoder.reset()
        decoder.forward(
            window[INPUT_IDS], images=None if tower is None else tower.encode_batch(window)
        )
        for name, said_1NPH in decoder.kv_cache().items():
            sizes_NPH = np.abs(said_1NPH[0])
            layer, what = name.split(".")[-2:]
            if what == "key":
                width = architecture.rotary_width(int(layer))
                sizes_NPH = turned_sizes(
                    sizes_NPH, width, in_pairs=architecture.decoder.layout.rotary_in_pairs
                )
            peaks[name] = np.maximum(peaks.get(name, 0), sizes_NPH.max(axis=1).ravel())
    return {
        name: np.maximum(peak / _LARGEST, _SMALLEST_SCALE).astype(np.float32)
        for name, peak in peaks.items()
    }


def turned_sizes(sizes_NPH: Array, width: int, *, in_pairs: bool) -> Array:
    """How large each value of a key can get, wherever it stands: rotary positions turn the first ``width`` by twos.

    A pair that turns slowly looks along one axis for all of a short window, and along the other behind some thousand tokens; the
    length of a pair is the same everywhere.
    """
    turned, rest = sizes_NPH[..., :width], sizes_NPH[..., width:]
    halves = turned.reshape(*turned.shape[:-1], *((-1, 2) if in_pairs else (2, width // 2)))
    axis = -1 if in_pairs else -2
    lengths = np.sqrt((halves**2).sum(axis=axis, keepdims=True))
    found: Array = np.concatenate(
        [np.broadcast_to(lengths, halves.shape).reshape(turned.shape), rest], axis=-1
    )
    return found
