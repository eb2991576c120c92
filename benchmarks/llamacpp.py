"""llama.cpp in this process, with its quantizer: tokens and logits of a GGUF file.

The package llama-cpp-py-sync ships llama.cpp's libraries; its own class computes the logits of the
last token alone, so the batch is built here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class LlamaCpp:
    """One loaded file."""

    def __init__(self, file: Path, context: int, threads: int) -> None:
        from llama_cpp_py_sync.llama import Llama

        self.llama = Llama(
            str(file), n_ctx=context, n_batch=context, n_threads=threads, flash_attn_type=0
        )
        self._lib, self._ffi = self.llama._lib, self.llama._ffi

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text, in which special tokens are recognized."""
        return self.llama.tokenize(text, add_special=special, parse_special=True)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the logits after each token, float32 [tokens, vocabulary]."""
        self.llama._clear_context_state()
        return self._decode(tokens, 0)

    def decode(self, token: int, position: int) -> np.ndarray:
        """Return the logits after one more token."""
        return self._decode([token], position)

    def _decode(self, tokens: Sequence[int], position: int) -> np.ndarray:
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = int(token), position + at
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, 0, 1
            if status := self._lib.llama_decode(self.llama._ctx, batch):
                raise RuntimeError(f"llama_decode returned {status}")
            size = len(tokens) * self.llama.n_vocab
            pointer = self._lib.llama_get_logits(self.llama._ctx)
            values = np.frombuffer(self._ffi.buffer(pointer, 4 * size), np.float32)
            return values.reshape(len(tokens), -1).copy()
        finally:
            self._lib.llama_batch_free(batch)


@contextmanager
def open_gguf(file: Path, context: int = 512, threads: int = 1) -> Iterator[LlamaCpp]:
    """Open a file in llama.cpp.

    Raises:
        RuntimeError: llama.cpp cannot load it.
    """
    model = LlamaCpp(file, context, threads)
    try:
        yield model
    finally:
        model.llama.close()
