"""Rows of a GGUF file in llama.cpp: each is a sequence of one context.

Shapes: B rows, T new tokens, K kept tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.runtimes.llamacpp.model import LlamaCppModel, Tokens
from compressor.runtimes.llamacpp.session import check_by_trial
from compressor.runtimes.rows import RowDecoder, RowOptions
from compressor.runtimes.session import Array


class LlamaCppRows(RowDecoder):
    """A GGUF file that generates. Keys and values are in float16, as llama.cpp keeps them."""

    def __init__(self, file: Path, options: RowOptions) -> None:
        """Open a file, first in a process of its own, since llama.cpp ends its process on some.

        Raises:
            MissingExtraError: the package with llama.cpp is not installed.
            RequirementError: its library cannot be used.
            ModelError: llama.cpp cannot load the file, or has no memory for the rows.
        """
        check_by_trial(file)
        self._model = LlamaCppModel(file, options.threads)
        self._model.make_room(options.rows, options.capacity)
        self._sequences = list(range(options.rows))
        """The sequence of each row."""
        self.options = options
        self.vocabulary = self._model.vocabulary
        self.token_bytes = self._model.token_bytes
        self.truncates = not self._model.has_states

    def append(self, row: int, length: int, ids_T: Array, images: Any, keep: int) -> Array:
        """See ``RowDecoder.append``."""
        del images
        sequence = self._sequences[row]
        self._model.shorten(sequence, length)
        return self._model.read(sequence, length, ids_T, keep=keep)

    def step(self, lengths_B: Array, ids_B: Array, images_B: list[Any]) -> Array:
        """See ``RowDecoder.step``."""
        del images_B
        sequences = self._sequences[: len(ids_B)]
        lengths = lengths_B.tolist()
        for sequence, length in zip(sequences, lengths, strict=True):
            self._model.shorten(sequence, length)
        rows = zip(sequences, lengths, ids_B[:, None], strict=True)
        return self._model.decode([Tokens(*row) for row in rows])

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``RowDecoder.copy``."""
        self._model.copy(self._sequences[source], self._sequences[target])
        if self.truncates:
            self._model.shorten(self._sequences[target], length)

    def swap(self, first: int, second: int, length: int) -> None:
        """See ``RowDecoder.swap``."""
        del length
        sequences = self._sequences
        sequences[first], sequences[second] = sequences[second], sequences[first]

    def release(self, row: int, length: int) -> None:
        """See ``RowDecoder.release``; the cells serve other tokens, and stay allocated."""
        self._model.shorten(self._sequences[row], length)

    def encode_images(
        self, ids_T: Array, arrays: Mapping[str, Array], pictures: Sequence[bytes]
    ) -> tuple[Any, Array]:
        """Refuse: a GGUF file of text has no part for images.

        Raises:
            DataError: always.
        """
        del ids_T, arrays, pictures
        raise DataError("a GGUF file of text takes no images")
