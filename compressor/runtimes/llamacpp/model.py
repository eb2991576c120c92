"""A GGUF file in llama.cpp: logits of sequences of tokens.

Shapes: R sequences that are computed together, T tokens of one of them, V vocabulary entries.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compressor.errors import ModelError, PassError
from compressor.runtimes.llamacpp.library import load_library
from compressor.runtimes.session import Array

CALL_TOKENS = 512
"""Tokens of one call: llama.cpp's own `n_ubatch`. More would take memory for logits, and gain no
time."""
_CELLS = 256
"""The key-value cache of a sequence is a multiple of it."""
_AGAIN = "copy or export it again; `autoglm-compress show` describes its header"


class LlamaCppModel:
    """One loaded file, and a context that grows with the sequences that it is given.

    Keys and values are kept in float16, and attention is chosen, as llama.cpp does by default.

    Attributes:
        vocabulary: number of logits.
        positions: context length that the file states.
    """

    def __init__(self, file: Path, threads: int) -> None:
        """Load a file; every value of its tensors is checked.

        Args:
            file: the GGUF file.
            threads: threads of one operator.

        Raises:
            MissingExtraError: the package with llama.cpp is not installed.
            RequirementError: its library cannot be used.
            ModelError: llama.cpp cannot load the file, or it is no decoder.
        """
        self._library, self._file, self._threads = load_library(), file, threads
        self._context: int | None = None
        self._rows = self._cells = 0
        params = self._library.llama_model_default_params()
        params.check_tensors, params.n_gpu_layers = True, 0
        with self._library.log.recording() as log:
            self._model = self._library.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise ModelError(f"llama.cpp cannot load {file}: {log.text()}", remedy=_AGAIN)
        if self._library.llama_model_has_encoder(self._model):
            self.close()
            raise ModelError(f"{file} has an encoder, and only decoders are executed")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self.vocabulary: int = self._library.llama_vocab_n_tokens(self._vocabulary)
        self.positions: int = self._library.llama_model_n_ctx_train(self._model)

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text; special tokens are recognized, and added as the file states.

        Raises:
            PassError: llama.cpp cannot tokenize the text.
        """
        encoded = text.encode()
        room = len(encoded) + 8
        ids = (ctypes.c_int32 * room)()
        count: int = self._library.llama_tokenize(
            self._vocabulary, encoded, len(encoded), ids, room, True, True
        )
        if count < 0:
            raise PassError(f"{self._file}: llama.cpp cannot tokenize a text ({count})")
        return list(ids[:count])

    def logits(self, sequences: Sequence[Array]) -> list[Array]:
        """Return the logits after each token of each sequence, float32 [T, V].

        Short sequences are computed together, long ones in pieces.

        Args:
            sequences: token ids of each, with at least one, and below ``vocabulary``.

        Raises:
            ModelError: llama.cpp has no memory for the sequences.
            PassError: llama.cpp failed inside the model.
        """
        longest = max(len(ids_T) for ids_T in sequences)
        together = min(len(sequences), max(1, CALL_TOKENS // longest))
        self._make_room(together, longest)
        results: list[Array] = []
        for start in range(0, len(sequences), together):
            group = sequences[start : start + together]
            self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
            if len(group) == 1:
                pieces = range(0, len(group[0]), CALL_TOKENS)
                parts = [self._decode([group[0][at : at + CALL_TOKENS]], at) for at in pieces]
                results.append(np.concatenate(parts) if len(parts) > 1 else parts[0])
            else:
                ends = np.cumsum([len(ids_T) for ids_T in group])[:-1]
                results += np.split(self._decode(group, 0), ends)
        return results

    def _make_room(self, rows: int, tokens: int) -> None:
        """Open a context for sequences, unless the present one is for as many and as long ones."""
        cells = -(-tokens // _CELLS) * _CELLS
        if rows == self._rows and cells <= self._cells:
            return
        self._free_context()
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = rows * cells, rows, CALL_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        with self._library.log.recording() as log:
            self._context = self._library.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelError(
                f"llama.cpp has no context of {rows} · {cells} tokens for {self._file}: "
                f"{log.text()}",
                remedy="lower `batch_size`, or the length of the samples",
            )
        self._rows, self._cells = rows, cells

    def _decode(self, group: Sequence[Array], start: int) -> Array:
        """Append tokens to the first sequences; return the logits after all of them in order.

        Args:
            group: token ids of each sequence.
            start: position of the first token of each.
        """
        total = sum(len(ids_T) for ids_T in group)
        batch = self._library.llama_batch_init(total, 0, 1)
        try:
            batch.n_tokens = total
            ctypes.memset(batch.logits, 1, total)
            _fill(batch.token, np.concatenate(group))
            _fill(batch.pos, np.concatenate([np.arange(len(ids_T)) + start for ids_T in group]))
            _fill(batch.n_seq_id, np.ones(total))
            rows = np.repeat(np.arange(len(group)), [len(ids_T) for ids_T in group])
            for index, row in enumerate(rows.tolist()):
                batch.seq_id[index][0] = row
            with self._library.log.recording() as log:
                status = self._library.llama_decode(self._context, batch)
        finally:
            self._library.llama_batch_free(batch)
        if status:
            raise PassError(f"llama.cpp failed on {self._file} ({status}): {log.text()}")
        pointer = self._library.llama_get_logits(self._context)
        logits_TV: Array = np.ctypeslib.as_array(pointer, (total, self.vocabulary)).copy()
        return logits_TV

    def close(self) -> None:
        """Release the context and the file."""
        self._free_context()
        if self._model:
            self._library.llama_model_free(self._model)
            self._model = None

    def _free_context(self) -> None:
        if self._context:
            self._library.llama_free(self._context)
        self._context, self._rows, self._cells = None, 0, 0


def _fill(pointer: ctypes._Pointer[ctypes.c_int32], values: Array) -> None:
    """Write integers to an array of int32."""
    np.ctypeslib.as_array(pointer, (len(values),))[:] = values
