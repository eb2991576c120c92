"""Scales of a key-value cache in 8 bits, from the largest keys and values on calibration windows.

Keys have a few channels that are large for every token, so one scale per channel, whatever the
token, loses little accuracy (KIVI, Liu et al. 2024, arXiv:2402.02750, for keys); ONNX Runtime's
kernels take the same for values.

Shapes: P positions, N key heads of width H.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compressor.data.contract import Batch
from compressor.graphs.decoder.architecture import DecoderArchitecture
from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.graphs.values import Array
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower

_INT8_MAX = 127
_SMALLEST_SCALE = 1e-8


def measure_cache_scales(
    folder: Path, architecture: DecoderArchitecture, windows: Sequence[Batch], threads: int
) -> dict[str, Array]:
    """Measure the scales with a graph whose cache is float32.

    Args:
        folder: holds the graph.
        architecture: of the decoder.
        windows: calibration samples, `input_ids` [1, T] with their images.
        threads: of ONNX Runtime.

    Returns:
        Cache input to its scales, float32 [N · H].
    """
    longest = max(window[INPUT_IDS].shape[1] for window in windows)
    decoder = OnnxDecoder(folder, threads, capacity=longest, drops_positions=False)
    tower = VisionTower.open_if_present(folder, threads)
    in_pairs = architecture.rotary_in_pairs
    peaks: dict[str, Array] = {}
    for window in windows:
        decoder.reset()
        images = None if tower is None else tower.encode_batch(window)
        decoder.forward(window[INPUT_IDS], images=images)
        for name, cached_1NPH in decoder.kv_cache().items():
            magnitudes_NPH = np.abs(cached_1NPH[0])
            layer, part = name.split(".")[-2:]
            if part.endswith("key") and (width := architecture.rotary_width(int(layer))):
                magnitudes_NPH = rotated_magnitudes(magnitudes_NPH, width, in_pairs=in_pairs)
            peaks[name] = np.maximum(peaks.get(name, 0), magnitudes_NPH.max(axis=1).ravel())
    return {
        name: np.maximum(peak / _INT8_MAX, _SMALLEST_SCALE).astype(np.float32)
        for name, peak in peaks.items()
    }


def rotated_magnitudes(magnitudes_NPH: Array, width: int, *, in_pairs: bool) -> Array:
    """Return the largest magnitude of each value of a key at any position.

    Rotary embeddings rotate the first ``width`` values two by two. A pair with a low frequency
    points along one axis for all of a short window, and along the other some thousand tokens later;
    its length is the same everywhere.

    Args:
        magnitudes_NPH: magnitudes of keys at some positions.
        width: values that are rotated.
        in_pairs: True if neighbours are rotated, False for the halves of a head.
    """
    rotated, rest = magnitudes_NPH[..., :width], magnitudes_NPH[..., width:]
    pair_shape = (-1, 2) if in_pairs else (2, width // 2)
    pairs = rotated.reshape(*rotated.shape[:-1], *pair_shape)
    lengths = np.sqrt((pairs**2).sum(axis=-1 if in_pairs else -2, keepdims=True))
    repeated = np.broadcast_to(lengths, pairs.shape).reshape(rotated.shape)
    result_NPH: Array = np.concatenate([repeated, rest], axis=-1)
    return result_NPH
