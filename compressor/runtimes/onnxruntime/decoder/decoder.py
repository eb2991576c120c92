"""A decoder's graph, token by token: keys and values stay in buffers that the runtime writes into.

Shapes: B samples, T tokens, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.errors import UsageError
from compressor.graphs.decoder.interface import EMBEDS, MASK, OFFSETS, Caches
from compressor.graphs.files import MODEL
from compressor.runtimes.memory import check_kv_cache_fits
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession
from compressor.runtimes.onnxruntime.decoder.vision import ImageInputs
from compressor.runtimes.onnxruntime.huge_pages import in_huge_pages
from compressor.runtimes.onnxruntime.inference import opened

Array = np.ndarray[Any, Any]
_PIECE = 128
"""Tokens of a prompt that are read at a time: 512 at once take 4 % longer, and memory of their own."""
_MANY = 16
"""Tokens of a prompt, or of several, from which a graph for prompts is the faster one."""
_IN_TURNS = {"session.force_spinning_stop": "1"}
"""Of two sessions: the threads of one wait for no call while the other's work."""
_COPIES = 4
"""Of a file while it is opened: its bytes, its tensors, what kernels make of them, and room between."""
TARGET = "autoglm_compress.target"
"""The key under which a decoder's file says whose operators it has."""


class OnnxDecoder:
    """One conversation, or several side by side, padded at the end."""

    def __init__(
        self,
        folder: Path,
        threads: int,
        *,
        samples: int = 1,
        room: int,
        lasting: bool = False,
        fast_prompts: bool = False,
    ) -> None:
        """Open ``model.onnx``, with room for so many tokens.

        Args:
            folder: with the graph.
            threads: of the runtime.
            samples: texts side by side.
            room: of each, in tokens.
            lasting: the process has this model until it ends: it lies in huge pages, where there are any.
            fast_prompts: prompts are read by weights in 8 bits, made of the packed ones and held beside them.

        Raises:
            ModelError: it cannot be opened.
            UsageError: it is no decoder, has no packed weights to read prompts with, or there is not so much memory.
            StorageError: the graph for prompts cannot be written where temporary files go.
        """
        self._session = _opened(folder, threads, lasting, _IN_TURNS if fast_prompts else {})
        caches = Caches.of(self._session.get_inputs())
        if caches is None:
            raise UsageError(
                f"{folder} does not generate: its graph takes no keys and values",
                remedy="name an artifact that export-onnx made of a language model",
            )
        told = self._session.get_modelmeta().custom_metadata_map
        self._grows = told.get(TARGET) == "portable"
        """Whether keys and values are given as long as they are, and padding stays where it was; else they lie in buffers."""
        # What grows is there twice while it does.
        check_kv_cache_fits((2 if self._grows else 1) * caches.bytes(samples, room), samples, room)
        self.samples, self.room = samples, room
        self._ones_1P = np.ones((1, room), dtype=np.int64)
        optional = {one.name: one.shape for one in self._session.get_overridable_initializers()}
        self._width = optional[EMBEDS][1] if EMBEDS in optional else None
        """Of the words of images, where there are any."""
        self._caches, self._step = caches, BoundSession(self._session)
        self._prompt = (
            BoundSession(_opened_for_prompts(folder, threads, lasting)) if fast_prompts else self._step
        )
        self._last = self._step
        if not self._grows:
            self._buffers = caches.room(samples, room)
            for graph in {self._step, self._prompt}:
                graph.share(self._buffers)
        self.start()

    def start(self) -> None:
        """Forget what has been said."""
        self._lengths_B = np.zeros(self.samples, dtype=np.int64)
        self._mask_BP = np.zeros((self.samples, 0), dtype=np.int64)
        self._after_B = np.zeros(self.samples, dtype=np.int64)
        if self._grows:
            self._buffers = self._caches.nothing(self.samples)

    def rewind(self, tokens: int) -> None:
        """Forget all but the first tokens, which all images must be among; of texts without padding."""
        self._lengths_B = np.minimum(self._lengths_B, tokens)
        self._mask_BP = self._mask_BP[:, :tokens]
        if self._grows:
            self._buffers = {
                name: buffer[:, :, :tokens].copy() for name, buffer in self._buffers.items()
            }

    def said(self) -> dict[str, Array]:
        """Keys and values of what the longest sample has heard and said, [B, N, P, H]; the next call may overwrite them."""
        length = int(self._lengths_B.max())
        return {name: buffer[:, :, :length] for name, buffer in self._buffers.items()}

    def feed(
        self,
        ids_BT: Array,
        lengths_B: Array | None = None,
        *,
        keep: int = 1,
        images: ImageInputs | None = None,
    ) -> Array:
        """The scores of the ``keep`` last tokens (0: all), [B, keep or T, V]; the next call may overwrite them.

        Args:
            ids_BT: int64, what comes next.
            lengths_B: of a first prompt that is padded, how many of its tokens are none of the padding.
            keep: of the end of ``ids_BT``, padding counted.
            images: in these tokens, which are then the first.

        Raises:
            UsageError: there is no room for them.
            PassError: ONNX Runtime failed inside the graph.
        """
        tokens = ids_BT.shape[1]
        new_B = np.full(self.samples, tokens) if lengths_B is None else lengths_B
        total = self._total(new_B, tokens, padded=lengths_B is not None)
        if total > self.room:
            raise UsageError(
                f"{total} tokens, and there is room for {self.room}", remedy="make room for more"
            )
        if self.samples > 1 and tokens > 1 and not self._grows and self._lengths_B.any():
            raise UsageError(
                f"{tokens} tokens behind what {self.samples} texts have said: ONNX Runtime's attention reads one at a time there",
                remedy="feed them one by one, or each text alone",
            )
        before = self._lengths_B, self._mask_BP, self._after_B, self._buffers
        try:
            plain = self.samples == 1 and lengths_B is None and images is None and not self._grows
            if not plain or not 0 < keep <= _PIECE < tokens:
                return self._read(ids_BT, new_B, total, keep, images)
            first = (
                tokens % _PIECE or _PIECE
            )  # so that the last piece is whole, and has all that is kept
            for piece_BT in np.split(ids_BT, range(first, tokens, _PIECE), axis=1):
                new_B = np.full(1, piece_BT.shape[1])
                scores = self._read(
                    piece_BT, new_B, self._total(new_B, piece_BT.shape[1], padded=False), keep, None
                )
        except BaseException:  # an interrupt too
            self._lengths_B, self._mask_BP, self._after_B, self._buffers = before
            raise
        return scores

    def _total(self, new_B: Array, tokens: int, *, padded: bool) -> int:
        """How long the longest sample will be: buffers are filled sample by sample, what grows has the padding in it."""
        if self._grows or padded:
            return self._mask_BP.shape[1] + tokens
        return int((self._lengths_B + new_B).max())

    def _read(
        self, ids_BT: Array, new_B: Array, total: int, keep: int, images: ImageInputs | None
    ) -> Array:
        tokens = ids_BT.shape[1]
        self._lengths_B = self._lengths_B + new_B
        fed = {MASK: self._mask(tokens, new_B, total)}
        if self._width is not None:
            fed |= self._of_images(images)
        graph = self._prompt if tokens > 1 and self.samples * tokens >= _MANY else self._step
        if graph is not self._last:
            self._last.forget()
            self._last = graph
        if self._grows:
            fed |= self._buffers
            self._buffers = self._caches.room(self.samples, total)
            graph.write(self._buffers)
        graph.read(fed)
        return graph.run(ids_BT, keep)

    def _mask(self, tokens: int, new_B: Array, total: int) -> Array:
        """int64 [B, P + T], of which ``tokens`` are new."""
        if self._grows:
            meant_BT = np.arange(tokens) < new_B[:, None]
            self._mask_BP = np.concatenate([self._mask_BP, meant_BT.astype(np.int64)], axis=1)
            return self._mask_BP
        if self.samples == 1 and int(self._lengths_B[0]) == total:
            return self._ones_1P[:, :total]
        return (np.arange(total) < self._lengths_B[:, None]).astype(np.int64)

    def _of_images(self, images: ImageInputs | None) -> dict[str, Array]:
        if images is None:
            offsets = np.broadcast_to(self._after_B[None, :, None], (3, self.samples, 1))
            return {
                EMBEDS: np.empty((0, self._width or 0), np.float32),
                OFFSETS: np.ascontiguousarray(offsets),
            }
        self._after_B = images.after_B
        return {EMBEDS: images.embeds_WH, OFFSETS: np.ascontiguousarray(images.offsets_3BT)}


def _opened(
    folder: Path, threads: int, lasting: bool, settings: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    size = sum(file.stat().st_size for file in folder.glob(f"{MODEL}*"))
    with in_huge_pages(_COPIES * size) if lasting else nullcontext():
        return opened(folder, threads, settings=settings)


def _opened_for_prompts(folder: Path, threads: int, lasting: bool) -> onnxruntime.InferenceSession:
    from compressor.runtimes.onnxruntime.decoder.fast_prompts import prompt_graph
    from compressor.runtimes.onnxruntime.products import EXACT, saturate

    with prompt_graph(folder, threads) as made:
        return _opened(made, threads, lasting, _IN_TURNS | (EXACT if saturate() else {}))
