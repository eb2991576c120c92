"""Generation with a decoder: the contract between a runtime and what generates.

The engine uses several rows, ``generate`` a single one. Models with an encoder have another
contract (``compressor.runtimes.decoding``): their states of the encoder belong to one sequence.

Each sequence has a *row*: its key-value cache, which outlives the answer, so that a later prompt
with the same beginning need not be read again.

Shapes: B rows, T new tokens, K kept tokens, V vocabulary entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import UsageError

Array = np.ndarray[Any, Any]
PIECE_TOKENS = 128
"""Prompt tokens of one call: 512 at once take 4 % longer, and more memory."""


@dataclass(frozen=True, slots=True)
class RowOptions:
    """Options for opening a model to generate several sequences."""

    threads: int
    rows: int
    """Sequences that are generated at once."""
    capacity: int
    """Tokens of prompt and answer that each row can hold."""
    fast_prompts: bool = False
    """Read prompts with 8-bit copies of the packed weights (ONNX decoders only)."""
    feature_bytes: int = 256 << 20
    """Bytes of the embeddings of images that are kept for prompts with the same images."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Name to folder of the adapters that rows may use: PEFT's layout with ``base.json``."""


@dataclass(slots=True)
class ImageCacheCounts:
    """Images whose embeddings were found in the cache, and those that were computed."""

    hits: int = 0
    misses: int = 0


class RowDecoder(ABC):
    """An open model with the key-value caches of several rows.

    The caller keeps the length of each row. After a call that failed, the content of its rows is
    not known, and they are to be released.

    Attributes:
        options: the options it was opened with.
        vocabulary: number of logits.
        token_bytes: bytes that the keys and values of one more token in a row take.
        row_bytes: bytes of a row beside these: states, and caches of a limited number of tokens.
        truncates: True if the last tokens of a row can be dropped; False for recurrent layers,
            whose state belongs to all tokens.
        splits_images: True if a prompt with images may be read in pieces; otherwise it is read at
            once, into an empty row, even if another row holds the same images. Its keys then equal
            those of no other prompt.
        image_cache: counts of the cache of image embeddings; None where there is none.
    """

    options: RowOptions
    vocabulary: int
    token_bytes: int
    row_bytes: int = 0
    truncates: bool = True
    splits_images: bool = False
    image_cache: ImageCacheCounts | None = None

    def use_adapter(self, row: int, adapter: str | None) -> None:
        """Use an adapter, or none, in the following calls for a row.

        Keys and values that were computed under another adapter must not stay in the row: the
        caller keeps them apart. ``copy`` and ``swap`` take the adapter with the row.

        Args:
            row: the row.
            adapter: a name in ``RowOptions.adapters``; None for the base alone.

        Raises:
            UsageError: no adapter of this name has been loaded.
        """
        if adapter is not None:
            raise UsageError(f"row {row}: there is no adapter {adapter!r}")

    def cache_bytes(self, tokens: int, rows: int = 1) -> int:
        """Return the bytes of the keys and values of so many tokens in so many rows."""
        return tokens * self.token_bytes + rows * self.row_bytes

    def can_resume(self, row: int, length: int, held: int) -> bool:  # noqa: ARG002
        """Return True if tokens may follow the first tokens of a row, which drops the others.

        Rows whose last call began behind fewer tokens can always be resumed, unless ``truncates``
        is False.

        Args:
            row: the row.
            length: its tokens that would stay.
            held: tokens that it holds.
        """
        return self.truncates or length == held

    @abstractmethod
    def append(self, row: int, length: int, ids_T: Array, images: Any, keep: int) -> Array:
        """Append tokens behind the first ``length`` tokens of a row, which drops the others.

        The next call may overwrite the result.

        Args:
            row: the row.
            length: its tokens that stay.
            ids_T: int64 token ids.
            images: what ``encode_images`` returned for the row's prompt; None without images.
            keep: number of last tokens whose logits are returned.

        Returns:
            Logits, float32 [K, V].

        Raises:
            PassError: the runtime failed.
        """

    @abstractmethod
    def step(self, lengths_B: Array, ids_B: Array, images_B: list[Any]) -> Array:
        """Append one token to each of the first B rows; return the logits, float32 [B, V].

        The next call may overwrite the result.

        Args:
            lengths_B: tokens of each row that stay.
            ids_B: int64, the token of each row.
            images_B: the images of each row's prompt, or None.

        Raises:
            PassError: the runtime failed.
        """

    @abstractmethod
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one row to another; all of them unless ``truncates``."""

    @abstractmethod
    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange two rows.

        Args:
            first: a row.
            second: another row.
            length: the larger number of tokens that they hold.
        """

    @abstractmethod
    def release(self, row: int, length: int) -> None:
        """Free the memory of all but the first tokens of a row."""

    @abstractmethod
    def encode_images(
        self, ids_T: Array, arrays: Mapping[str, Array], pictures: Sequence[bytes]
    ) -> tuple[Any, Array]:
        """Encode the images of a prompt; may run on another thread than the other methods.

        Args:
            ids_T: the tokens of the prompt.
            arrays: the arrays of the model's processor for one conversation.
            pictures: digest of each picture, in order.

        Returns:
            The runtime's inputs for the images, and a key for each token, int64 [T]: its id, or for
            the token of an image a number that stands for the image and the token's place in it.

        Raises:
            DataError: the arrays do not fit the tokens.
            PassError: the runtime failed.
        """


class SingleRow:
    """One sequence in the first row of a decoder, for callers without an engine."""

    def __init__(self, decoder: RowDecoder, images: Any = None, adapter: str | None = None) -> None:
        """Start an empty sequence.

        Args:
            decoder: the rows.
            images: what ``RowDecoder.encode_images`` returned for the prompt.
            adapter: name of the adapter that it uses.
        """
        decoder.use_adapter(0, adapter)
        self._decoder, self._images, self._length = decoder, images, 0

    def forward(self, ids_T: Array) -> Array:
        """Append tokens, and return the logits after the last one, float32 [V].

        The next call may overwrite the result.
        """
        in_pieces = self._images is None or self._decoder.splits_images
        size = PIECE_TOKENS if in_pieces else len(ids_T)
        for start in range(0, len(ids_T), size):
            piece_T = ids_T[start : start + size]
            logits_KV = self._decoder.append(0, self._length, piece_T, self._images, 1)
            self._length += len(piece_T)
        logits_V: Array = logits_KV[-1]
        return logits_V
