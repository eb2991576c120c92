"""Images in the prompts of rows: pieces of a prompt, and a cache of embeddings.

Shapes: T prompt tokens, N image tokens of width W.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError
from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.models.families.transformers.images import GRIDS
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower
from compressor.runtimes.rows import ImageCacheCounts

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class RowImages:
    """The images of one prompt."""

    embeddings_NW: Array
    offsets_3T: Array
    """Added to the position of each prompt token in time, height and width."""
    next_offset: int
    """Added to the position of every token behind the prompt."""
    before_T: Array
    """Number of image tokens before each prompt token, and at the end their total; [T + 1]."""

    @classmethod
    def none(cls, width: int) -> RowImages:
        """Return the images of a text."""
        return cls(
            np.empty((0, width), np.float32), np.zeros((3, 0), np.int64), 0, np.zeros(1, int)
        )

    def piece(self, start: int, tokens: int) -> tuple[Array, Array]:
        """Return the embeddings and the offsets, int64 [3, tokens], of tokens of the row."""
        first, last = (
            int(self.before_T[min(index, len(self.before_T) - 1)])
            for index in (start, start + tokens)
        )
        offsets_3T = np.full((3, tokens), self.next_offset, np.int64)
        known_3T = self.offsets_3T[:, start : start + tokens]
        offsets_3T[:, : known_3T.shape[1]] = known_3T
        return self.embeddings_NW[first:last], offsets_3T


class ImageFeatures:
    """The vision tower of a decoder, opened at its first image, with a cache of its results.

    Attributes:
        counts: counts of the cache.
    """

    def __init__(self, folder: Path, threads: int, capacity_bytes: int) -> None:
        """Open nothing yet.

        Args:
            folder: the decoder's folder.
            threads: threads of the tower.
            capacity_bytes: bytes of embeddings to keep; the least recently used are dropped.
        """
        self._folder, self._threads = folder, threads
        self._cache = EmbeddingCache(capacity_bytes)
        self.counts = self._cache.counts
        self._tower: _CachedTower | None = None
        self._lock = threading.Lock()

    def encode(
        self, ids_T: Array, arrays: Mapping[str, Array], pictures: Sequence[bytes]
    ) -> tuple[RowImages, Array]:
        """Return the images of a prompt and the key of each token; see ``RowDecoder``."""
        with self._lock:
            if self._tower is None:
                self._tower = _CachedTower(self._folder, self._threads, self._cache)
            batch = {name: array[None] for name, array in arrays.items()}
            # An image of a grid is one picture; other classes divide pictures into tiles.
            is_known = len(arrays.get(GRIDS, ())) == len(pictures)
            units = self._tower.start_units(pictures if is_known else ())
            inputs = self._tower.encode_batch({**batch, INPUT_IDS: ids_T[None]})
        if inputs is None:
            raise DataError("the arrays of the processor hold no images")
        is_image_T = inputs.is_image_BT[0]
        prefix_keys_T = ids_T.astype(np.int64, copy=True)
        prefix_keys_T[is_image_T] = np.concatenate(
            [_image_prefix_keys(digest, count) for digest, count in units]
        )
        images = RowImages(
            inputs.embeddings_NW,
            inputs.position_offsets_3BT[:, 0],
            int(inputs.next_offset_B[0]),
            np.concatenate([[0], is_image_T.cumsum()]),
        )
        return images, prefix_keys_T


class EmbeddingCache:
    """Embeddings by digest, up to a number of bytes; the least recently used go first."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes, self.size_bytes = capacity_bytes, 0
        self.counts = ImageCacheCounts()
        self._entries: OrderedDict[bytes, Array] = OrderedDict()

    def get(self, digest: bytes) -> Array | None:
        """Return the embeddings of a digest, or None."""
        if digest not in self._entries:
            self.counts.misses += 1
            return None
        self.counts.hits += 1
        self._entries.move_to_end(digest)
        return self._entries[digest]

    def put(self, digest: bytes, embeddings_NW: Array) -> None:
        """Keep embeddings, unless they are larger than the cache."""
        if embeddings_NW.nbytes > self.capacity_bytes:
            return
        self._entries[digest] = embeddings_NW
        self.size_bytes += embeddings_NW.nbytes
        while self.size_bytes > self.capacity_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.size_bytes -= dropped.nbytes


class _CachedTower(VisionTower):
    """A vision tower that keeps its results, and the digest of each image or tile."""

    def __init__(self, folder: Path, threads: int, cache: EmbeddingCache) -> None:
        super().__init__(folder, threads, "cpu")
        self._cache = cache
        self._units: list[tuple[bytes, int]] = []
        self._pictures: list[bytes] = []

    def start_units(self, pictures: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Return the list that receives digest and number of tokens of each image or tile.

        Args:
            pictures: digest of each image; none for digests of the arrays.
        """
        self._units, self._pictures = [], list(pictures)
        return self._units

    def encode_unit(self, feeds: Batch) -> Array:
        """See ``VisionTower.encode_unit``."""
        number = len(self._units)
        digest = self._pictures[number] if self._pictures else _digest(feeds)
        embeddings_NW = self._cache.get(digest)
        if embeddings_NW is None:
            embeddings_NW = super().encode_unit(feeds)
            self._cache.put(digest, embeddings_NW)
        self._units.append((digest, len(embeddings_NW)))
        return embeddings_NW


def _digest(feeds: Batch) -> bytes:
    """Return a digest of the arrays of an image: their names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.digest()


def _image_prefix_keys(digest: bytes, count: int) -> Array:
    """Return the keys of an image's tokens: negative numbers, which no token id is."""
    start = int.from_bytes(digest[:7], "big")
    keys = start + np.arange(count, dtype=np.int64)
    result: Array = -1 - keys
    return result
