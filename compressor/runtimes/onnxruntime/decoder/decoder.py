"""Token-by-token generation with a decoder's graph in ONNX Runtime.

Shapes: B sequences, T new tokens, P positions in the cache, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import UsageError
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    GROWING_TARGETS,
    IMAGE_EMBEDS,
    POSITION_OFFSETS,
    TARGET_KEY,
    TRACED,
)
from compressor.runtimes import memory
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession
from compressor.runtimes.onnxruntime.decoder.cache import (
    GrowingBuffers,
    KeyValueCache,
    SharedBuffers,
)
from compressor.runtimes.onnxruntime.decoder.encoder import Encoder, input_names
from compressor.runtimes.onnxruntime.decoder.opening import (
    SLEEP_BETWEEN_RUNS,
    cache_layout,
    open_decoder_graph,
    open_prompt_graph,
    takes_one_token,
)
from compressor.runtimes.onnxruntime.decoder.vision import ImageInputs, image_shapes

Array = np.ndarray[Any, Any]
_CHUNK_TOKENS = 128
"""Prompts are prefilled in chunks: 512 tokens at once take 4 % longer, and more memory."""
PROMPT_GRAPH_MIN_TOKENS = 16
"""Number of tokens in a call, over all sequences, from which the graph for prompts is faster."""


class OnnxDecoder:
    """A decoder graph with the key-value cache of one or several sequences.

    Several sequences are padded at the end of the first prompt.

    Attributes:
        batch_size: number of sequences.
        capacity: tokens that the cache holds for each sequence.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        *,
        batch_size: int = 1,
        capacity: int,
        huge_pages: bool = False,
        fast_prompts: bool = False,
        drops_positions: bool = True,
    ) -> None:
        """Open ``model.onnx`` and allocate its key-value cache.

        Args:
            folder: an ONNX model written by ``export-onnx``.
            threads: threads of one operator.
            batch_size: number of sequences.
            capacity: tokens of each sequence that the cache holds.
            huge_pages: allocate the weights in huge pages where the system has them. They stay in
                this process until it ends.
            fast_prompts: prefill with 8-bit copies of the packed weights, held beside them.
            drops_positions: False to keep all positions in caches that may drop some.

        Raises:
            ModelError: the graph cannot be opened.
            UsageError: the graph is no decoder, has no packed weights for ``fast_prompts``, or
                does not fit into memory.
            StorageError: the graph for prompts cannot be written to the temporary directory.
        """
        settings = SLEEP_BETWEEN_RUNS if fast_prompts else {}
        session = open_decoder_graph(folder, threads, huge_pages=huge_pages, settings=settings)
        layout = cache_layout(folder, session)
        if not drops_positions:
            layout = layout.without_bounds()
        self._encoder, self._decoder_inputs = (
            Encoder.open_if_present(folder, threads),
            input_names(session),
        )
        self._encoded: Batch = {}
        self.batch_size, self.capacity = batch_size, capacity
        self._cache = _allocate_cache(session, layout, batch_size, capacity)
        self._image_width, self._image_names = _image_width(session), _image_names(session)
        self._takes_one_token = takes_one_token(session)
        self._decode_session = BoundSession(session)
        self._prefill_session = (
            BoundSession(open_prompt_graph(folder, threads, huge_pages=huge_pages))
            if fast_prompts
            else self._decode_session
        )
        self._last_session = self._decode_session
        for bound in {self._decode_session, self._prefill_session}:
            self._cache.bind_once(bound)
        self.reset()

    def reset(self) -> None:
        """Remove all tokens from the cache."""
        self._cache.reset()
        self._next_offset_B = np.zeros(self.batch_size, dtype=np.int64)

    def encode(self, batch: Mapping[str, Array]) -> None:
        """Run the encoder on its inputs, and start with an empty cache.

        Args:
            batch: arrays of ``batch_size`` samples.

        Raises:
            UsageError: the model has no encoder.
            DataError: arrays are missing or do not fit.
            PassError: ONNX Runtime failed inside the graph.
        """
        if self._encoder is None:
            raise UsageError("the model has no encoder: it continues tokens")
        self.reset()
        # A binding does not keep its arrays alive.
        self._encoded = self._encoder.encode(batch, self._decoder_inputs)
        for bound in {self._decode_session, self._prefill_session}:
            bound.bind_inputs(self._encoded)

    def can_truncate(self, tokens: int) -> bool:
        """Return True if only the first tokens can be kept.

        States of recurrent layers belong to all tokens, and bounded caches may have dropped
        positions that the next token reads.
        """
        return not self._cache.layout.has_states and self._cache.can_resume(tokens)

    @property
    def takes_padding(self) -> bool:
        """True if prompts of different lengths can be processed together.

        The state of a recurrent layer would take up the padding, and decoders behind an encoder
        count it as positions.
        """
        return not self._cache.layout.has_states and self._encoder is None

    def truncate(self, tokens: int) -> None:
        """Keep only the first tokens, which must include all images; not for padded sequences.

        Raises:
            UsageError: the cache cannot be shortened to them (``can_truncate``).
        """
        if not self.can_truncate(tokens):
            raise UsageError(
                f"the cache cannot be shortened to {tokens} tokens: it no longer holds what the "
                "next token reads",
                remedy="reset the decoder, and process the tokens again",
            )
        self._cache.truncate(tokens)

    def kv_cache(self) -> dict[str, Array]:
        """Return keys and values up to the length of the longest sequence, [B, N, P, H].

        N are the key-value heads of width H. The next call may overwrite the result.
        """
        return self._cache.valid()

    def forward(
        self,
        ids_BT: Array,
        lengths_B: Array | None = None,
        *,
        logits_to_keep: int = 1,
        images: ImageInputs | None = None,
    ) -> Array:
        """Append tokens and return the logits of the last ones, float32 [B, kept tokens, V].

        The next call may overwrite the result. A call that fails leaves the cache as it was.

        Args:
            ids_BT: int64 token ids.
            lengths_B: valid tokens of each sequence; only for a first prompt with padding.
            logits_to_keep: number of last tokens, padding included; 0 for all T.
            images: images among these tokens; only in the first call.

        Raises:
            UsageError: the tokens exceed the capacity, or the call after one that failed lacks
                positions that a bounded cache has dropped in between.
            PassError: ONNX Runtime failed inside the graph.
        """
        tokens = ids_BT.shape[1]
        new_B = np.full(self.batch_size, tokens) if lengths_B is None else lengths_B
        total = self._cache.total_length(new_B, tokens, padded=lengths_B is not None)
        self._check_length(tokens, total, padded=bool((new_B != tokens).any()))
        # A binding does not keep its arrays alive: this also holds the past keys and values.
        state = self._cache.state, self._next_offset_B
        try:
            if lengths_B is None and images is None and self._splits(tokens, logits_to_keep):
                return self._run_chunks(ids_BT, logits_to_keep)
            if self._takes_one_token and tokens > 1:
                return self._run_one_by_one(ids_BT, logits_to_keep)
            if lengths_B is not None and self._cache.pads_left:
                return self._run_padded_left(ids_BT, new_B, logits_to_keep, total)
            return self._run(ids_BT, new_B, logits_to_keep, images, total)
        except BaseException:  # an interrupt too
            self._cache.state, self._next_offset_B = state
            raise

    def _check_length(self, tokens: int, total: int, *, padded: bool) -> None:
        if total > self.capacity:
            raise UsageError(
                f"{total} tokens, and the key-value cache holds {self.capacity}",
                remedy="open the decoder with a larger capacity",
            )
        if padded and not self.takes_padding:
            raise UsageError(
                "prompts of different lengths cannot be processed together: the model would take "
                "padding for tokens",
                remedy="process each sequence alone",
            )
        if not self._cache.can_resume():
            raise UsageError(
                "the cache no longer holds what the next token reads: a call has failed",
                remedy="reset the decoder, and process the tokens again",
            )
        several = self.batch_size > 1 and tokens > 1 and self._cache.state.lengths_B.any()
        if several and not self._cache.batched_appends:
            raise UsageError(
                f"{tokens} tokens at a time cannot follow the prompts of {self.batch_size} "
                "sequences: ONNX Runtime's attention takes one token per sequence there",
                remedy="pass one token at a time, or process each sequence alone",
            )

    def _splits(self, tokens: int, logits_to_keep: int) -> bool:
        """Return True if tokens are processed in chunks."""
        if self.batch_size > 1 or not self._cache.chunked_prefill or tokens <= _CHUNK_TOKENS:
            return False
        return 0 < logits_to_keep <= _CHUNK_TOKENS or not self._cache.takes(tokens)

    def _run_chunks(self, ids_BT: Array, logits_to_keep: int) -> Array:
        """Process tokens chunk by chunk, of which the last one is whole."""
        tokens, kept = ids_BT.shape[1], []
        first, left = tokens % _CHUNK_TOKENS or _CHUNK_TOKENS, tokens
        for chunk_BT in np.split(ids_BT, range(first, tokens, _CHUNK_TOKENS), axis=1):
            size = chunk_BT.shape[1]
            left -= size
            new_B = np.full(1, size)
            total = self._cache.total_length(new_B, size, padded=False)
            keep = min((logits_to_keep or tokens) - left, size)
            logits = self._run(chunk_BT, new_B, max(keep, 1), None, total)
            if keep > 0:
                kept.append(logits.copy() if left else logits)
        return np.concatenate(kept, axis=1) if len(kept) > 1 else logits

    def _run_one_by_one(self, ids_BT: Array, logits_to_keep: int) -> Array:
        """Run tokens one by one, for a graph that takes no more."""
        new_B = np.ones(self.batch_size, dtype=np.int64)
        first = max(ids_BT.shape[1] - logits_to_keep, 0) if logits_to_keep else 0
        kept = []
        for position in range(ids_BT.shape[1]):
            total = self._cache.total_length(new_B, 1, padded=False)
            logits_B1V = self._run(ids_BT[:, [position]], new_B, 1, None, total)
            if position >= first:
                kept.append(logits_B1V.copy())
        return np.concatenate(kept, axis=1)

    def _run_padded_left(
        self, ids_BT: Array, lengths_B: Array, logits_to_keep: int, total: int
    ) -> Array:
        """Run prompts whose padding the graph takes before the tokens; move the logits back."""
        rows_B1, order_T = np.arange(len(ids_BT))[:, None], np.arange(ids_BT.shape[1])
        shift_B1 = ids_BT.shape[1] - lengths_B[:, None]
        moved_BT = ids_BT[rows_B1, order_T - shift_B1]
        logits_BTV = self._run(moved_BT, lengths_B, 0, None, total)
        restored_BTV: Array = logits_BTV[rows_B1, (order_T + shift_B1) % ids_BT.shape[1]]
        return restored_BTV[:, -logits_to_keep:]

    def _run(
        self,
        ids_BT: Array,
        new_B: Array,
        logits_to_keep: int,
        images: ImageInputs | None,
        total: int,
    ) -> Array:
        tokens = ids_BT.shape[1]
        inputs = {ATTENTION_MASK: self._cache.append(new_B, tokens, total)}
        if self._image_width is not None:
            image_inputs = self._image_inputs(images, self._image_width, tokens)
            inputs |= {name: image_inputs[name] for name in self._image_names}
        is_prompt = tokens > 1 and self.batch_size * tokens >= PROMPT_GRAPH_MIN_TOKENS
        session = self._prefill_session if is_prompt else self._decode_session
        if session is not self._last_session:
            self._last_session.release_logits()
            self._last_session = session
        self._cache.bind(session, total)
        session.bind_inputs(inputs)
        try:
            return session.run(ids_BT, logits_to_keep)
        finally:
            self._cache.finish(session)

    def _image_inputs(
        self, images: ImageInputs | None, width: int, tokens: int
    ) -> dict[str, Array]:
        if images is None:
            shape = (3, self.batch_size, tokens)
            offsets = np.broadcast_to(self._next_offset_B[None, :, None], shape)
            return {
                IMAGE_EMBEDS: np.empty((0, width), np.float32),
                POSITION_OFFSETS: np.ascontiguousarray(offsets),
            }
        self._next_offset_B = images.next_offset_B
        return {
            IMAGE_EMBEDS: images.embeddings_NW,
            POSITION_OFFSETS: np.ascontiguousarray(images.position_offsets_3BT),
        }


def _allocate_cache(
    session: onnxruntime.InferenceSession, layout: KvCacheLayout, batch_size: int, capacity: int
) -> KeyValueCache:
    """Return the cache that fits the operators of a graph.

    Raises:
        UsageError: it does not fit into memory.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    grows = metadata.get(TARGET_KEY) in GROWING_TARGETS
    # A growing cache is in memory twice while it grows.
    size_bytes = (2 if grows else 1) * layout.size_bytes(batch_size, capacity)
    memory.check_kv_cache_fits(size_bytes, batch_size, capacity)
    if grows:
        return GrowingBuffers(layout, batch_size, pads_left=metadata[TARGET_KEY] == TRACED)
    return SharedBuffers(layout, batch_size, capacity)


def _image_width(session: onnxruntime.InferenceSession) -> int | None:
    """Return the width of an image token's embedding; None for a model of text."""
    shapes = image_shapes(session)
    return int(shapes[IMAGE_EMBEDS][1]) if IMAGE_EMBEDS in shapes else None


def _image_names(session: onnxruntime.InferenceSession) -> tuple[str, ...]:
    """Return the names of the inputs for images."""
    return tuple(image_shapes(session))
