"""Rows of a decoder's graph in ONNX Runtime: sequences that join and leave between the steps.

Keys and values of all rows lie in buffers [rows, N, P, H]. The slice of one row is contiguous, and
so is that of the first rows; a binding of the same session to ``buffers[row : row + 1]`` reads a
prompt while the others keep their places, and one to ``buffers[:B]`` steps B rows at once.

Shapes: B rows, T new tokens, P positions, N key heads of width H, V vocabulary entries.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import UsageError
from compressor.graphs.decoder.cache_bounds import PIECE_ROWS
from compressor.graphs.decoder.cache_layout import CachedArray, KvCacheLayout
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    GROWING_TARGETS,
    IMAGE_EMBEDS,
    POSITION_OFFSETS,
    TARGET_KEY,
    TRACED,
)
from compressor.runtimes.onnxruntime.decoder.adapters import LoadedAdapters
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession
from compressor.runtimes.onnxruntime.decoder.cache import GrowingBuffers
from compressor.runtimes.onnxruntime.decoder.decoder import PROMPT_GRAPH_MIN_TOKENS
from compressor.runtimes.onnxruntime.decoder.dropped_positions import DroppedPositions
from compressor.runtimes.onnxruntime.decoder.opening import (
    SLEEP_BETWEEN_RUNS,
    cache_layout,
    open_decoder_graph,
    open_prompt_graph,
    takes_one_token,
)
from compressor.runtimes.onnxruntime.decoder.row_images import ImageFeatures, RowImages
from compressor.runtimes.onnxruntime.decoder.vision import image_shapes
from compressor.runtimes.rows import RowDecoder, RowOptions

Array = np.ndarray[Any, Any]
_MADV_DONTNEED = 4  # mman.h
_MADV_NOHUGEPAGE = 15


def open_rows(folder: Path, options: RowOptions) -> RowDecoder:
    """Open a decoder written by ``export-onnx`` for several sequences.

    Raises:
        ModelError: the graph cannot be opened.
        UsageError: the graph is no decoder, or has no packed weights for ``fast_prompts``.
        StorageError: the graph for prompts cannot be written to the temporary directory.
    """
    session = open_decoder_graph(
        folder, options.threads, huge_pages=True, settings=SLEEP_BETWEEN_RUNS
    )
    layout = cache_layout(folder, session)
    prompts = (
        open_prompt_graph(folder, options.threads, huge_pages=True)
        if options.fast_prompts
        else session
    )
    target = session.get_modelmeta().custom_metadata_map.get(TARGET_KEY)
    if target in GROWING_TARGETS:
        return GrowingRows(folder, options, session, layout, pads_left=target == TRACED)
    return SharedRows(folder, options, session, prompts, layout)


class _OnnxRows(RowDecoder):
    """Sizes and images, which both kinds of graphs share."""

    def __init__(
        self,
        folder: Path,
        options: RowOptions,
        session: onnxruntime.InferenceSession,
        layout: KvCacheLayout,
    ) -> None:
        self.options, self._layout = options, layout
        self.truncates = not layout.has_states
        self.token_bytes = layout.token_bytes
        self.row_bytes = layout.size_bytes(1, options.capacity) - (
            self.token_bytes * options.capacity
        )
        self._one_token = takes_one_token(session)
        shapes = image_shapes(session)
        self._image_names = tuple(shapes)
        self._image_width = int(shapes[IMAGE_EMBEDS][1]) if IMAGE_EMBEDS in shapes else 0
        self._features = ImageFeatures(folder, options.threads, options.feature_bytes)
        self.image_cache = self._features.counts if shapes else None
        self._adapters = LoadedAdapters(folder, session, options.adapters)
        self._adapter_of: list[str | None] = [None] * options.rows

    def use_adapter(self, row: int, adapter: str | None) -> None:
        """See ``RowDecoder.use_adapter``; the next call binds the factors."""
        self._adapters.check(adapter)
        self._adapter_of[row] = adapter

    def _swap_adapters(self, first: int, second: int) -> None:
        names = self._adapter_of
        names[first], names[second] = names[second], names[first]

    def encode_images(
        self, ids_T: Array, arrays: Mapping[str, Array], pictures: Sequence[bytes]
    ) -> tuple[RowImages, Array]:
        """See ``RowDecoder.encode_images``; the embeddings of an image are kept and used again."""
        return self._features.encode(ids_T, arrays, pictures)

    def _image_inputs(self, starts_B: Array, tokens: int, images_B: list[Any]) -> Batch:
        """Return the inputs for the images among the new tokens of rows."""
        if not self._image_names:
            return {}
        rows = [images or RowImages.none(self._image_width) for images in images_B]
        pieces = [
            row.piece(start, tokens) for row, start in zip(rows, starts_B.tolist(), strict=True)
        ]
        inputs = {
            IMAGE_EMBEDS: np.concatenate([embeddings for embeddings, _ in pieces]),
            POSITION_OFFSETS: np.stack([offsets for _, offsets in pieces], axis=1),
        }
        return {name: inputs[name] for name in self._image_names}


class SharedRows(_OnnxRows):
    """Buffers that the graph updates in place (``target: onnxruntime``).

    A page of memory is taken when a token is written to it, and given back by ``release``: what the
    rows take follows their tokens, not their capacity.
    """

    splits_images = True

    def __init__(
        self,
        folder: Path,
        options: RowOptions,
        session: onnxruntime.InferenceSession,
        prompts: onnxruntime.InferenceSession,
        layout: KvCacheLayout,
    ) -> None:
        """Allocate the buffers.

        Args:
            folder: the decoder's folder.
            options: rows, capacity and threads.
            session: the decoder's graph.
            prompts: the graph for prompts, or the same.
            layout: names, shapes and types of the buffers.
        """
        super().__init__(folder, options, session, layout)
        self._session, self._prompts = session, prompts
        self._buffers = {array.name: _mapped(array, options) for array in layout.arrays}
        self._dropped = DroppedPositions(layout, self._buffers)
        self._ones_1P = np.ones((1, options.capacity), dtype=np.int64)
        self._bindings: dict[tuple[int, int, bool], BoundSession] = {}
        self._last: BoundSession | None = None
        self.vocabulary = self._bound(0, 1, prompt=False).vocabulary_size

    def append(self, row: int, length: int, ids_T: Array, images: Any, keep: int) -> Array:
        """See ``RowDecoder.append``; bounded caches take a long prompt in pieces."""
        size = PIECE_ROWS if self._layout.bounds else len(ids_T)
        kept = []
        for start in range(0, len(ids_T), size):
            piece_T = ids_T[start : start + size]
            end = start + len(piece_T)
            needed = min(keep - (len(ids_T) - end), len(piece_T))
            logits_KV = self._append(row, length + start, piece_T, images, max(needed, 1))
            if needed > 0:
                kept.append(logits_KV.copy() if end < len(ids_T) else logits_KV)
        return np.concatenate(kept) if len(kept) > 1 else logits_KV

    def can_resume(self, row: int, length: int, held: int) -> bool:
        """See ``RowDecoder.can_resume``."""
        return super().can_resume(row, length, held) and self._dropped.can_resume(row, length)

    def _append(self, row: int, length: int, ids_T: Array, images: Any, keep: int) -> Array:
        total = length + len(ids_T)
        self._dropped.make_space(row, length, len(ids_T))
        prompt = len(ids_T) >= PROMPT_GRAPH_MIN_TOKENS
        session = self._bound(row, row + 1, prompt=prompt)
        self._adapters.bind(session, self._adapter_of[row])
        inputs = {ATTENTION_MASK: self._ones_1P[:, :total]}
        inputs |= self._image_inputs(np.array([length]), len(ids_T), [images])
        session.bind_inputs(inputs)
        logits_KV: Array = session.run(ids_T[None], keep)[0]
        return logits_KV

    def step(self, lengths_B: Array, ids_B: Array, images_B: list[Any]) -> Array:
        """See ``RowDecoder.step``."""
        rows = len(ids_B)
        if len({*self._adapter_of[:rows]}) > 1:
            return self._step_in_turn(lengths_B, ids_B, images_B)
        session = self._bound(0, rows, prompt=False)
        self._adapters.bind(session, self._adapter_of[0])
        for row, length in enumerate(lengths_B.tolist()):
            self._dropped.make_space(row, length, 1)
        total = int(lengths_B.max()) + 1
        mask_BP = self._ones_1P[:, :total]
        if rows > 1:
            mask_BP = (np.arange(total) <= lengths_B[:, None]).astype(np.int64)
        inputs = {ATTENTION_MASK: mask_BP} | self._image_inputs(lengths_B, 1, images_B)
        session.bind_inputs(inputs)
        logits_BV: Array = session.run(ids_B[:, None], 1)[:, -1]
        return logits_BV

    def _step_in_turn(self, lengths_B: Array, ids_B: Array, images_B: list[Any]) -> Array:
        """Step rows of several adapters: a call of the graph takes the factors of one."""
        rows = zip(lengths_B.tolist(), ids_B[:, None], images_B, strict=True)
        return np.concatenate(
            [
                self.append(row, length, ids_1, images, 1).copy()
                for row, (length, ids_1, images) in enumerate(rows)
            ]
        )

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``RowDecoder.copy``."""
        self._adapter_of[target] = self._adapter_of[source]
        self._dropped.copy(source, target)
        for array in self._layout.first(self._buffers, length).values():
            array[target] = array[source]

    def swap(self, first: int, second: int, length: int) -> None:
        """See ``RowDecoder.swap``."""
        self._swap_adapters(first, second)
        self._dropped.swap(first, second)
        for array in self._layout.first(self._buffers, length).values():
            kept = array[first].copy()
            array[first] = array[second]
            array[second] = kept

    def release(self, row: int, length: int) -> None:
        """See ``RowDecoder.release``."""
        if not length:
            self._dropped.clear(row)
        for array in self._layout.arrays:
            rows = max(length - self._dropped.number(array.bound, row), 0)
            for head in self._buffers[array.name][row]:
                _free_pages(head[rows:])

    def _bound(self, start: int, end: int, *, prompt: bool) -> BoundSession:
        """Return the binding to a range of rows, made once."""
        prompt = prompt and self._prompts is not self._session
        key = start, end, prompt
        if key not in self._bindings:
            session = BoundSession(self._prompts if prompt else self._session)
            session.bind_in_place({n: array[start:end] for n, array in self._buffers.items()})
            dropped = self._dropped.inputs.items()
            session.bind_inputs({name: dropped_B[start:end] for name, dropped_B in dropped})
            self._bindings[key] = session
        # Only one binding holds logits, which are large for many rows.
        if self._last is not None and self._last is not self._bindings[key]:
            self._last.release_logits()
        self._last = self._bindings[key]
        return self._last


class GrowingRows(_OnnxRows):
    """A cache of its own for each row, for graphs that return longer keys and values.

    These graphs step one row after the other: their rows have different lengths.
    """

    def __init__(
        self,
        folder: Path,
        options: RowOptions,
        session: onnxruntime.InferenceSession,
        layout: KvCacheLayout,
        *,
        pads_left: bool,
    ) -> None:
        """Create empty rows.

        Args:
            folder: the decoder's folder.
            options: rows, capacity and threads.
            session: the decoder's graph.
            layout: names, shapes and types of the caches.
            pads_left: True if the graph takes padding before the tokens.
        """
        super().__init__(folder, options, session, layout)
        if options.fast_prompts:
            raise UsageError(
                f"{folder} is a graph for other runtimes: --fast-prompts needs packed weights",
                remedy="export with `target: onnxruntime`, or leave --fast-prompts out",
            )
        self._caches = [GrowingBuffers(layout, 1, pads_left=pads_left) for _ in range(options.rows)]
        self._session = BoundSession(session)
        self.vocabulary = self._session.vocabulary_size

    def append(self, row: int, length: int, ids_T: Array, images: Any, keep: int) -> Array:
        """See ``RowDecoder.append``."""
        cache = self._caches[row]
        self._adapters.bind(self._session, self._adapter_of[row])
        if int(cache.state.lengths_B[0]) != length:
            cache.truncate(length) if length else cache.reset()
        if not self._one_token:
            return self._run(cache, length, ids_T, images, keep)
        kept = [
            self._run(cache, length + index, ids_T[[index]], images, 1).copy()
            for index in range(len(ids_T))
        ]
        return np.concatenate(kept[-keep:])

    def step(self, lengths_B: Array, ids_B: Array, images_B: list[Any]) -> Array:
        """See ``RowDecoder.step``."""
        rows = zip(lengths_B.tolist(), ids_B[:, None], images_B, strict=True)
        return np.concatenate(
            [
                self.append(row, length, ids_1, images, 1).copy()
                for row, (length, ids_1, images) in enumerate(rows)
            ]
        )

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``RowDecoder.copy``."""
        self._adapter_of[target] = self._adapter_of[source]
        self._caches[target].state = self._caches[source].copied(length)

    def swap(self, first: int, second: int, length: int) -> None:
        """See ``RowDecoder.swap``."""
        del length
        self._swap_adapters(first, second)
        caches = self._caches
        caches[first], caches[second] = caches[second], caches[first]

    def release(self, row: int, length: int) -> None:
        """See ``RowDecoder.release``."""
        cache = self._caches[row]
        if length < int(cache.state.lengths_B[0]):
            cache.truncate(length) if length else cache.reset()

    def _run(
        self, cache: GrowingBuffers, length: int, ids_T: Array, images: Any, keep: int
    ) -> Array:
        tokens = len(ids_T)
        total = cache.total_length(np.array([tokens]), tokens, padded=False)
        inputs = {ATTENTION_MASK: cache.append(np.array([tokens]), tokens, total)}
        inputs |= self._image_inputs(np.array([length]), tokens, [images])
        cache.bind(self._session, total)
        self._session.bind_inputs(inputs)
        logits_KV: Array = self._session.run(ids_T[None], keep)[0]
        return logits_KV


def _mapped(kind: CachedArray, options: RowOptions) -> Array:
    """Return zeros for all rows whose pages are taken when they are written, each for itself."""
    array = kind.zeros(options.rows, options.capacity)
    if hasattr(mmap, "MADV_DONTNEED"):
        _advise(array, _MADV_NOHUGEPAGE)
    return array


def _free_pages(array: Array) -> None:
    """Give back the whole pages of a contiguous array; their content is lost."""
    if hasattr(mmap, "MADV_DONTNEED"):
        _advise(array, _MADV_DONTNEED)


def _advise(array: Array, advice: int) -> None:
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if size > 0:
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)


def _libc() -> Any:
    return ctypes.CDLL(None)
